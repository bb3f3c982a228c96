//! Lists: one snapshot, in key order, page by page at the revision of the first page.
//!
//! A continue token holds the revision and the last key that was shown. If the revision has left
//! the window, the client gets 410 with a token that goes on behind the same key at the present
//! state (revision 0 in the token), and may take it or start again.

use super::{
    get, read,
    select::Selection,
    table::{self, Include},
};
use crate::apiserver::{
    ApiServer,
    content::{self, Accepted, Form},
    custom,
    errors::ApiError,
    escape,
    pieces::{self, Pace},
    request::Request,
    stored,
};
use axum::response::Response;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};
use wherry_resources::{Kind, Object};
use wherry_store::{Entry, Revision, Snapshot, WindowError};

/// Kubernetes' sentence for a token whose snapshot is gone.
const TOKEN_EXPIRED: &str = "The provided continue parameter is too old to display a consistent \
    list result. You can start a new list without the continue parameter, or use the continue token \
    in this response to retrieve the remainder of the results. Continuing with the provided token \
    results in an inconsistent list - objects that were created, modified, or deleted between the \
    time the first chunk was returned and now may show up in the list.";

/// Where the items of a list, and the rows of a Table, begin in its JSON.
const ITEMS: &str = "\"items\":[";
const ROWS: &str = "\"rows\":[";

/// What an item has in a list besides what is stored: its revision, and a comma.
const ITEM_OVERHEAD: usize = 48;

/// Where a list goes on.
#[derive(Debug, PartialEq, Eq)]
struct Token {
    /// 0: the present state, whatever it is.
    revision: Revision,
    after: Vec<u8>,
}

impl Token {
    fn encode(&self) -> String {
        let mut bytes = self.revision.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.after);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// A token must lie in the list that it is used for.
    fn decode(text: &str, prefix: &[u8]) -> Result<Token, ApiError> {
        let bad = || ApiError::BadRequest("continue key is not valid".to_owned());
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| bad())?;
        let (revision, after) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
        if !after.starts_with(prefix) {
            return Err(bad());
        }
        Ok(Token { revision: Revision::from_be_bytes(*revision), after: after.to_vec() })
    }
}

/// One page of a list.
pub struct Page {
    pub revision: Revision,
    pub items: Vec<(Bytes, Entry)>,
    token: Option<String>,
    remaining: Option<usize>,
}

impl Page {
    /// ListMeta.
    fn metadata(&self) -> Map<String, Value> {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".into(), self.revision.to_string().into());
        if let Some(token) = &self.token {
            metadata.insert("continue".into(), token.as_str().into());
        }
        if let Some(remaining) = self.remaining {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
        metadata
    }
}

/// Answers a list. A long one is made while it is sent.
pub async fn list(api: &ApiServer, request: &Request) -> Result<Response, ApiError> {
    let selection = Selection::of(request)?;
    let include = Include::of(&request.query)?;
    let page = page(api, request, selection).await?;
    let kind = request.kind;
    let size: usize = page.items.iter().map(|(_, entry)| entry.value.len()).sum();
    let is_long = size >= pieces::LONG;
    if request.accepted.is_compact() && !custom::by_webhook(kind) {
        let room = size + ITEM_OVERHEAD * page.items.len();
        let mut text = Text::of(kind, page, request.accepted, include, jiff::Timestamp::now());
        let media = "application/json";
        if is_long {
            let share = api.fairness().share(&request.user);
            let next = move |pace: &Pace| {
                let is_enough = |size| size >= pieces::ENOUGH || pace.is_over();
                text.piece(pieces::ENOUGH, is_enough).map(Bytes::from)
            };
            return Ok(pieces::answer(media, share, next));
        }
        let bytes = text.piece(room, |_| false).expect("it has not been written yet");
        return Ok(content::respond_bytes(StatusCode::OK, media, bytes, &[]));
    }
    let decode = || page.items.iter().map(|(_, entry)| stored::decode(kind, entry)).collect();
    let items: Vec<Object> = match is_long {
        false => decode(),
        true => api.fairness().compute(decode).await,
    };
    let items = custom::into_version(api, kind, items).await?;
    let respond = || respond(request, &page, items, include, &[]);
    Ok(match is_long {
        false => respond(),
        true => api.fairness().compute(respond).await,
    })
}

/// The answer with these objects as the items of a page.
pub fn respond(
    request: &Request,
    page: &Page,
    objects: Vec<Object>,
    include: Include,
    warnings: &[String],
) -> Response {
    let (kind, form, now) = (request.kind, request.accepted.form, jiff::Timestamp::now());
    let items = objects.into_iter().map(|object| item(kind, object, form, include, now));
    let value = in_order(kind, form, of(kind, page, form, items.collect()));
    content::respond(StatusCode::OK, &request.accepted, &value, warnings)
}

/// Lists of custom objects have their keys in alphabetical order too.
fn in_order(kind: &Kind, form: Form, mut list: Value) -> Value {
    if form == Form::Object && kind.custom.is_some() {
        list.sort_all_objects();
    }
    list
}

fn of_items(
    kind: &str,
    api_version: &str,
    metadata: Map<String, Value>,
    items: Vec<Value>,
) -> Value {
    json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items })
}

/// An object as it stands in a list.
fn as_item(kind: &Kind, object: Object) -> Object {
    match kind.custom {
        Some(_) => get::shown(kind, object),
        None => without_type(object),
    }
}

/// Items of a list do not repeat what the list says.
fn without_type(mut object: Object) -> Object {
    if let Some(map) = object.as_object_mut() {
        map.shift_remove("kind");
        map.shift_remove("apiVersion");
    }
    object
}

/// A list as JSON, one item after the other, so that no more than one is ever held as values.
struct Text {
    kind: &'static Kind,
    accepted: Accepted,
    include: Include,
    now: jiff::Timestamp,
    /// What stands before the items, until it is written.
    head: Vec<u8>,
    items: std::vec::IntoIter<(Bytes, Entry)>,
    /// What stands behind the items, until it is written.
    tail: Option<Vec<u8>>,
    /// What stands before the next item.
    comma: &'static [u8],
}

impl Text {
    fn of(
        kind: &'static Kind,
        page: Page,
        accepted: Accepted,
        include: Include,
        now: jiff::Timestamp,
    ) -> Text {
        let form = accepted.form;
        let head = in_order(kind, form, of(kind, &page, form, Vec::new())).to_string();
        // The items are an empty list so far; of custom kinds the kind and the metadata stand behind.
        let middle = match form {
            Form::Table { .. } => head.rfind(ROWS).map(|at| at + ROWS.len()),
            _ => head.find(ITEMS).map(|at| at + ITEMS.len()),
        };
        let (head, tail) = head.split_at(middle.expect("a list has items"));
        Text {
            kind,
            accepted,
            include,
            now,
            head: escape::whole(head.as_bytes().to_vec()),
            items: page.items.into_iter(),
            tail: Some(format!("{tail}\n").into_bytes()),
            comma: b"",
        }
    }

    /// What follows, until it is enough; `room` is what that will take at the least.
    fn piece(&mut self, room: usize, is_enough: impl Fn(usize) -> bool) -> Option<Vec<u8>> {
        let mut tail = self.tail.take()?;
        let mut bytes = std::mem::take(&mut self.head);
        bytes.reserve(room);
        while let Some((_, entry)) = self.items.next() {
            bytes.extend_from_slice(self.comma);
            self.comma = b",";
            self.write(&entry, &mut bytes);
            if is_enough(bytes.len()) {
                self.tail = Some(tail);
                return Some(bytes);
            }
        }
        bytes.append(&mut tail);
        Some(bytes)
    }

    fn write(&self, entry: &Entry, out: &mut Vec<u8>) {
        let (kind, include, now) = (self.kind, self.include, self.now);
        let is_plain = stored::is_plain(kind);
        match self.accepted.form {
            Form::Object => {
                let value = stored::accepted(kind, self.accepted, &entry.value);
                stored::write_item(kind, &value, entry.modified, out);
            }
            Form::Table { version } if is_plain => {
                table::write_row(kind, entry, include, version, now, out);
            }
            Form::Metadata { version } if is_plain => stored::write_metadata(entry, version, out),
            form => {
                let start = out.len();
                let item = item(kind, stored::decode(kind, entry), form, include, now);
                serde_json::to_writer(&mut *out, &item).expect("memory takes what is written");
                escape::tail(out, start);
            }
        }
    }
}

/// One object in the form of its list.
fn item(
    kind: &'static Kind,
    object: Object,
    form: Form,
    include: Include,
    now: jiff::Timestamp,
) -> Value {
    match form {
        Form::Object => as_item(kind, object),
        Form::Metadata { version } => content::metadata_only(object, version),
        Form::Table { version } => table::row(kind, object, include, version, now),
    }
}

/// A list of these items.
fn of(kind: &'static Kind, page: &Page, form: Form, items: Vec<Value>) -> Value {
    match form {
        Form::Object => of_items(&kind.list_kind(), &kind.api_version(), page.metadata(), items),
        Form::Metadata { version } => {
            let api_version = format!("meta.k8s.io/{version}");
            of_items("PartialObjectMetadataList", &api_version, page.metadata(), items)
        }
        Form::Table { version } => table::table(kind, version, page.metadata(), true, items),
    }
}

/// Reads the page that a request asks for.
pub async fn page(
    api: &ApiServer,
    request: &Request,
    selection: Selection,
) -> Result<Page, ApiError> {
    let prefix = stored::prefix(request.kind, request.namespace());
    let limit = request.query.number("limit")?.filter(|limit| *limit > 0);
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let token = request.query.get("continue");
    let wanted = read::wanted(&request.query, token.is_some())?;
    let token = token.map(|text| Token::decode(text, &prefix)).transpose()?;
    let snapshot = match &token {
        None | Some(Token { revision: 0, .. }) => read::snapshot(api, wanted).await?,
        Some(token) => {
            // The first page may have come from a member that is ahead of this one.
            read::snapshot(api, read::Wanted::AtLeast(token.revision)).await?;
            api.store().at(token.revision).map_err(|error| match error {
                WindowError::Gone { .. } => {
                    let next = Token { revision: 0, after: token.after.clone() };
                    ApiError::Expired {
                        message: TOKEN_EXPIRED.to_owned(),
                        continue_token: Some(next.encode()),
                    }
                }
                WindowError::Future { .. } => read::window(error, token.revision),
            })?
        }
    };
    let scan = Scan {
        kind: request.kind,
        prefix: selection.prefix(request.namespace()),
        selection,
        limit,
        last: token.map(|token| token.after.into()),
        revision: snapshot.revision(),
        snapshot,
        items: Vec::new(),
        behind: 0,
    };
    let share = api.fairness().share(&request.user);
    Ok(pieces::steps(share, scan, Scan::step).await.into_page())
}

/// A page that is being read: up to `limit` matching objects behind a key.
struct Scan {
    kind: &'static Kind,
    prefix: Bytes,
    selection: Selection,
    limit: usize,
    /// Key of the last object that was looked at.
    last: Option<Bytes>,
    revision: Revision,
    snapshot: Snapshot,
    items: Vec<(Bytes, Entry)>,
    /// Objects that match behind a full page: how many there are of everything, else whether there
    /// is one.
    behind: usize,
}

impl Scan {
    /// Reads on, until it is time for others; whether all has been read.
    fn step(&mut self, pace: &Pace) -> bool {
        let Scan { kind, prefix, selection, limit, last, snapshot, items, behind, .. } = self;
        let is_everything = selection.is_everything();
        // The name is the last segment of the key; a selector on it spares reading the others.
        let is_named = |key: &[u8]| {
            let last = || key.rsplit(|byte| *byte == 0).next();
            selection.name().is_none_or(|name| last() == Some(name.as_bytes()))
        };
        let matches = |entry: &Entry| {
            selection.may_match(&entry.value) && selection.matches(&stored::decode(kind, entry))
        };
        for (key, entry) in snapshot.range(prefix, last.as_deref()) {
            if is_everything || is_named(&key) && matches(&entry) {
                match items.len() < *limit {
                    true => items.push((key.clone(), entry)),
                    false => *behind += 1,
                }
                if *behind > 0 && !is_everything {
                    return true;
                }
            }
            if pace.is_over() {
                *last = Some(key);
                return false;
            }
        }
        true
    }

    fn into_page(self) -> Page {
        let Scan { revision, items, behind, .. } = self;
        let last = items.last().filter(|_| behind > 0);
        let token = last.map(|(key, _)| Token { revision, after: key.to_vec() }.encode());
        let remaining = (behind > 0 && self.selection.is_everything()).then_some(behind);
        Page { revision, items, token, remaining }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_in_pieces_is_the_list_of_its_values() {
        let kinds = [("", "configmaps"), ("", "pods"), ("apps", "deployments")];
        let forms = [
            Form::Object,
            Form::Table { version: "v1" },
            Form::Metadata { version: "v1" },
            Form::Metadata { version: "v1beta1" },
        ];
        let includes = [Include::None, Include::Metadata, Include::Object];
        for ((group, plural), form) in
            kinds.into_iter().flat_map(|kind| forms.map(|form| (kind, form)))
        {
            let kind = wherry_resources::kind(group, "v1", plural).expect("a built-in kind");
            let entry = |at: u64| {
                let object = json!({
                    "kind": kind.kind, "apiVersion": kind.api_version(),
                    "metadata": {
                        "name": format!("a-{at}"), "uid": format!("u-{at}"),
                        "annotations": {"said": "a < \"b\" && {c", "}": "]"},
                        "managedFields": [{"manager": "m", "fieldsV1": {"f:data": {}}}],
                    },
                    "spec": {"replicas": 2, "containers": [{"name": "c", "image": "<i>"}]},
                });
                let value = stored::encode(kind, &object);
                (Bytes::from(at.to_string()), Entry { value, created: 1, modified: at + 5 })
            };
            for include in includes {
                let page = || Page {
                    revision: 9,
                    items: (0..3).map(entry).collect(),
                    token: Some("token".to_owned()),
                    remaining: Some(4),
                };
                let now = jiff::Timestamp::UNIX_EPOCH;
                let value = |(_, entry): &(Bytes, Entry)| {
                    item(kind, stored::decode(kind, entry), form, include, now)
                };
                let values = page().items.iter().map(value).collect();
                let whole = in_order(kind, form, of(kind, &page(), form, values));
                let whole = content::rendered(&whole, false);
                for (enough, count) in [(0, 4), (usize::MAX, 1)] {
                    let accepted = Accepted { form, yaml: false, pretty: false, managers: true };
                    let mut text = Text::of(kind, page(), accepted, include, now);
                    let next = || text.piece(0, |size| size >= enough);
                    let pieces: Vec<Vec<u8>> = std::iter::from_fn(next).collect();
                    let said = String::from_utf8_lossy(&whole);
                    assert_eq!(
                        String::from_utf8_lossy(&pieces.concat()),
                        said,
                        "{plural} {form:?}"
                    );
                    assert_eq!(pieces.len(), count);
                }
            }
        }
    }
}
