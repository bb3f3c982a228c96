//! Headers and bodies of `wasi:http` that a guest holds, bounded together. wasmtime bounds each, and
//! an instance's handles are counted; but so many handles of such a size are far more than a
//! container may have of the host's memory.
//!
//! The rest of the interface is wasmtime's own, so nobody says here when something ends. Therefore
//! what is added is summed up, and when the sum exceeds what the instance has booked, its table of
//! resources is weighed, which tells what is still there. Ordinary guests never come so far: each
//! instance has a little of it free.

use std::any::Any;

use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime_wasi::TrappableError;
use wasmtime_wasi_http::p2::HeaderError;
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::p3::bindings::http::types as p3;
use wasmtime_wasi_http::{FieldMap, FieldMapError, WasiHttp, WasiHttpCtxView, WasiHttpView};

use crate::files::replace;
use crate::host_memory::Part;
use crate::instance::Host;
use crate::limits::{BODY_CHUNK_BYTES_MAX, FIELDS_BYTES_MAX, MESSAGE_BYTES_FREE};

const FROM_LIST: &str = "[static]fields.from-list";
const SET: &str = "[method]fields.set";
const APPEND: &str = "[method]fields.append";
const CLONE: &str = "[method]fields.clone";
const REQUEST_BODY: &str = "[method]outgoing-request.body";
const RESPONSE_BODY: &str = "[method]outgoing-response.body";

/// What a value costs beside its bytes in a map.
const VALUE_BYTES: usize = 128;
/// A body that nobody reads: two chunks, and its trailers.
const BODY_BYTES: usize = 2 * BODY_CHUNK_BYTES_MAX + FIELDS_BYTES_MAX;
/// Booked ahead, so that not each header makes the table be weighed.
const STEP_BYTES: usize = 64 << 10;

/// What the messages of one instance hold.
pub(crate) struct Messages {
    booked: Part,
    /// What may be added before the table must be weighed.
    room: usize,
}

impl Messages {
    pub(crate) fn new(booked: Part) -> Messages {
        Messages { booked, room: MESSAGE_BYTES_FREE }
    }

    /// Books so much more beside what the table holds, or says in wasmtime's words that it is too
    /// much.
    pub(crate) fn make_room(
        &mut self,
        more: usize,
        table: &mut ResourceTable,
    ) -> Result<(), FieldMapError> {
        if more > self.room {
            let held: usize = table.iter_mut().map(|entry| weight(entry)).sum();
            let wanted = (held + more + STEP_BYTES).saturating_sub(MESSAGE_BYTES_FREE);
            if !self.booked.resize(wanted) {
                return Err(FieldMapError::TotalSizeTooBig);
            }
            self.room = MESSAGE_BYTES_FREE + wanted - held;
        }
        self.room -= more;
        Ok(())
    }
}

/// What an entry of the table holds of messages that a guest has made.
fn weight(entry: &(dyn Any + Send)) -> usize {
    let body = |is_there: bool| if is_there { BODY_BYTES } else { 0 };
    if let Some(fields) = entry.downcast_ref::<FieldMap>() {
        size(fields)
    } else if let Some(request) = entry.downcast_ref::<p2::OutgoingRequest>() {
        size(&request.headers) + body(request.body.is_some())
    } else if let Some(response) = entry.downcast_ref::<p2::OutgoingResponse>() {
        size(&response.headers) + body(response.body.is_some())
    } else if let Some(request) = entry.downcast_ref::<p3::Request>() {
        size(&request.headers)
    } else if let Some(response) = entry.downcast_ref::<p3::Response>() {
        size(&response.headers)
    } else {
        0
    }
}

fn size(fields: &FieldMap) -> usize {
    let names: usize = fields.keys().map(|name| name.as_str().len()).sum();
    let values: usize = fields.values().map(|value| value.len() + VALUE_BYTES).sum();
    names + values
}

type Header = (String, Vec<u8>);

fn list_size(list: &[Header]) -> usize {
    list.iter().map(|(name, value)| name.len() + value.len() + VALUE_BYTES).sum()
}

fn values_size(name: &str, values: &[Vec<u8>]) -> usize {
    name.len() + values.iter().map(|value| value.len() + VALUE_BYTES).sum::<usize>()
}

/// Does what adds so many bytes if there is room for them.
fn bounded<T, E: From<FieldMapError>>(
    host: &mut Host,
    bytes: usize,
    work: impl FnOnce(&mut WasiHttpCtxView<'_>) -> Result<T, E>,
) -> Result<T, E> {
    host.make_room(bytes)?;
    work(&mut host.http())
}

/// Copies fields. The interface has no error for it, so too many copies are a trap.
fn copy(
    host: &mut Host,
    fields: Resource<FieldMap>,
    work: impl FnOnce(
        &mut WasiHttpCtxView<'_>,
        Resource<FieldMap>,
    ) -> wasmtime::Result<Resource<FieldMap>>,
) -> wasmtime::Result<(Resource<FieldMap>,)> {
    let bytes = size(host.http().table.get(&fields)?);
    Ok((bounded(host, bytes, |http| work(http, fields))?,))
}

/// What a guest of WASI 0.2 is told. Too much is a trap, as a map is that is too large.
fn told_p2<T>(result: Result<T, HeaderError>) -> wasmtime::Result<(Result<T, p2::HeaderError>,)> {
    Ok((match result {
        Ok(value) => Ok(value),
        Err(error) => Err(error.downcast()?),
    },))
}

/// What a guest of WASI 0.3 is told.
fn told_p3<T>(
    result: Result<T, TrappableError<p3::HeaderError>>,
) -> wasmtime::Result<(Result<T, p3::HeaderError>,)> {
    Ok((match result {
        Ok(value) => Ok(value),
        Err(error) => Err(error.downcast()?),
    },))
}

type Values = (Resource<FieldMap>, String, Vec<Vec<u8>>);
type Value = (Resource<FieldMap>, String, Vec<u8>);

fn define_p2(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut types = linker.instance("wasi:http/types@0.2.12")?;
    types.func_wrap(FROM_LIST, |mut store, (list,): (Vec<Header>,)| {
        let (host, bytes) = (store.data_mut(), list_size(&list));
        told_p2(bounded(host, bytes, |http| p2::HostFields::from_list(http, list)))
    })?;
    types.func_wrap(SET, |mut store, (fields, name, values): Values| {
        let (host, bytes) = (store.data_mut(), values_size(&name, &values));
        told_p2(bounded(host, bytes, |http| p2::HostFields::set(http, fields, name, values)))
    })?;
    types.func_wrap(APPEND, |mut store, (fields, name, value): Value| {
        let (host, bytes) = (store.data_mut(), name.len() + value.len() + VALUE_BYTES);
        told_p2(bounded(host, bytes, |http| p2::HostFields::append(http, fields, name, value)))
    })?;
    types.func_wrap(CLONE, |mut store, (fields,): (Resource<FieldMap>,)| {
        copy(store.data_mut(), fields, |http, fields| p2::HostFields::clone(http, fields))
    })?;
    types.func_wrap(REQUEST_BODY, |mut store, (request,): (Resource<p2::OutgoingRequest>,)| {
        let host = store.data_mut();
        if host.make_room(BODY_BYTES).is_err() {
            return Ok((Err(()),));
        }
        Ok((p2::HostOutgoingRequest::body(&mut host.http(), request)?,))
    })?;
    types.func_wrap(RESPONSE_BODY, |mut store, (response,): (Resource<p2::OutgoingResponse>,)| {
        let host = store.data_mut();
        if host.make_room(BODY_BYTES).is_err() {
            return Ok((Err(()),));
        }
        Ok((p2::HostOutgoingResponse::body(&mut host.http(), response)?,))
    })
}

/// Bodies of WASI 0.3 are streams of the guest's, of which nothing is read before they are sent.
fn define_p3(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    let mut types = linker.instance("wasi:http/types@0.3.0")?;
    types.func_wrap(FROM_LIST, |mut store, (list,): (Vec<Header>,)| {
        let (host, bytes) = (store.data_mut(), list_size(&list));
        told_p3(bounded(host, bytes, |http| p3::HostFields::from_list(http, list)))
    })?;
    types.func_wrap(SET, |mut store, (fields, name, values): Values| {
        let (host, bytes) = (store.data_mut(), values_size(&name, &values));
        told_p3(bounded(host, bytes, |http| p3::HostFields::set(http, fields, name, values)))
    })?;
    types.func_wrap(APPEND, |mut store, (fields, name, value): Value| {
        let (host, bytes) = (store.data_mut(), name.len() + value.len() + VALUE_BYTES);
        told_p3(bounded(host, bytes, |http| p3::HostFields::append(http, fields, name, value)))
    })?;
    types.func_wrap(CLONE, |mut store, (fields,): (Resource<FieldMap>,)| {
        copy(store.data_mut(), fields, |http, fields| p3::HostFields::clone(http, fields))
    })
}

/// `wasi:http/types` of WASI 0.2.
pub(crate) fn add_p2(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    p2::add_to_linker::<_, WasiHttp>(linker, &Default::default(), Host::http)?;
    replace(linker, define_p2)
}

/// `wasi:http/types` of WASI 0.3.
pub(crate) fn add_p3(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    p3::add_to_linker::<_, WasiHttp>(linker, Host::http)?;
    replace(linker, define_p3)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;
    use crate::engine::Calls;
    use crate::host_memory::HostMemory;
    use crate::interfaces::component_linker;
    use crate::limits::HOST_BYTES_MAX;

    /// About 32 KiB of headers. Copies share them, and weigh as much.
    fn fields() -> FieldMap {
        let mut fields = FieldMap::new_mutable(FIELDS_BYTES_MAX);
        let value = HeaderValue::try_from("v".repeat(32 << 10)).expect("a plain value");
        fields.append_raw(HeaderName::from_static("name"), value).expect("there is room");
        fields
    }

    /// Keeps fields until there is no room for more; says how many bytes.
    fn fill(messages: &mut Messages, table: &mut ResourceTable) -> usize {
        let fields = fields();
        let (bytes, mut held) = (size(&fields), 0);
        while messages.make_room(bytes, table).is_ok() {
            table.push(fields.clone()).expect("the table has no bound");
            held += bytes;
            assert!(held < 2 * HOST_BYTES_MAX, "it takes everything");
        }
        held
    }

    #[test]
    fn instances_share_what_the_host_holds_of_messages() {
        let memory = HostMemory::default();
        let instance = || (Messages::new(memory.part()), ResourceTable::new());
        let ((mut first, mut table), (mut second, mut other)) = (instance(), instance());
        let held = fill(&mut first, &mut table);
        assert!((HOST_BYTES_MAX..HOST_BYTES_MAX + MESSAGE_BYTES_FREE).contains(&held), "{held}");
        let free = fill(&mut second, &mut other);
        assert!((1..2 * MESSAGE_BYTES_FREE).contains(&free), "{free}");
        table = ResourceTable::new();
        first.make_room(BODY_BYTES, &mut table).expect("the guest has dropped all of it");
        assert!(fill(&mut second, &mut other) > HOST_BYTES_MAX / 2, "another has it");
        drop((second, other));
        assert!(fill(&mut first, &mut table) >= HOST_BYTES_MAX, "the other one has ended");
    }

    #[test]
    fn what_nobody_reads_of_a_body_counts() {
        let request = p2::OutgoingRequest {
            method: p2::Method::Get,
            scheme: None,
            authority: None,
            path_with_query: None,
            headers: fields(),
            body: Some(from_nothing()),
        };
        assert_eq!(weight(&request), size(&fields()) + BODY_BYTES);
        assert_eq!(weight(&0_u8), 0);
    }

    fn from_nothing() -> wasmtime_wasi_http::WasiBody {
        use http_body_util::{BodyExt, Empty};
        Empty::new().map_err(|never| match never {}).boxed_unsync()
    }

    /// Defined once more, each of them is a second one of its name.
    #[test]
    fn what_is_replaced_was_there() {
        let engine = wasmtime::Engine::default();
        let mut linker = Linker::<Host>::new(&engine);
        let options = Default::default();
        p2::add_to_linker::<_, WasiHttp>(&mut linker, &options, Host::http).expect("0.2");
        p3::add_to_linker::<_, WasiHttp>(&mut linker, Host::http).expect("0.3");
        let fields = [FROM_LIST, SET, APPEND, CLONE];
        let bodies = [REQUEST_BODY, RESPONSE_BODY];
        let in_p2 = fields.iter().chain(&bodies).map(|name| ("wasi:http/types@0.2.12", name));
        let in_p3 = fields.iter().map(|name| ("wasi:http/types@0.3.0", name));
        for (interface, name) in in_p2.chain(in_p3) {
            let mut types = linker.instance(interface).expect("it is linked");
            let again = types.func_wrap(name, |_, (): ()| Ok(()));
            assert!(again.is_err(), "{interface} {name}");
        }
    }

    /// A component that imports what is replaced, as the interface's own text has it.
    fn importing(version: &str, more_errors: &str, more: &str) -> String {
        format!(
            r#"(component (import "wasi:http/types@{version}" (instance
  (export "fields" (type $fields (sub resource)))
  (type $header-error' (variant (case "invalid-syntax") (case "forbidden") (case "immutable")
    {more_errors}))
  (export "header-error" (type $header-error (eq $header-error')))
  (export "[static]fields.from-list"
    (func (param "entries" (list (tuple string (list u8))))
      (result (result (own $fields) (error $header-error)))))
  (export "[method]fields.append"
    (func (param "self" (borrow $fields)) (param "name" string) (param "value" (list u8))
      (result (result (error $header-error)))))
  (export "[method]fields.set"
    (func (param "self" (borrow $fields)) (param "name" string) (param "value" (list (list u8)))
      (result (result (error $header-error)))))
  (export "[method]fields.clone"
    (func (param "self" (borrow $fields)) (result (own $fields))))
  {more})))"#
        )
    }

    #[test]
    fn guests_can_be_linked_with_what_is_replaced() {
        let engine = wasmtime::Engine::default();
        let linker = component_linker(&engine, Calls::Concurrent).expect("it links");
        let bodies = r#"
  (export "outgoing-request" (type $outgoing-request (sub resource)))
  (export "outgoing-body" (type $outgoing-body (sub resource)))
  (export "[method]outgoing-request.body"
    (func (param "self" (borrow $outgoing-request)) (result (result (own $outgoing-body)))))"#;
        let new_errors = r#"(case "size-exceeded") (case "other" (option string))"#;
        for text in [importing("0.2.0", "", bodies), importing("0.3.0", new_errors, "")] {
            let component = wasmtime::component::Component::new(&engine, &text).expect("it is one");
            linker.instantiate_pre(&component).map(drop).expect(&text);
        }
    }
}
