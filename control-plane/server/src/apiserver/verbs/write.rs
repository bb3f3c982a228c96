//! The one way into the store: defaults, admission, validation, precondition, write.
//!
//! Callers bring an object that `prepare` has made. A race with another writer comes back as
//! [`Failure::Raced`], so that those who may try again (patches, unconditional updates) can do so
//! with the newer state, and everybody else answers 409.

use super::{Part, body, facts, prepare, quota};
use crate::apiserver::{
    ApiServer,
    admission::{self, Operation},
    auth::User,
    custom,
    errors::ApiError,
    extensions, openapi,
    request::Request,
    stored,
};
use bytes::Bytes;
use serde_json::{Map, Value};
use std::time::Duration;
use wherry_resources::{
    Kind, Object,
    apply::{self, Writer},
    defaults, meta, validate,
};
use wherry_store::{Entry, Precondition, Revision, Snapshot, WriteError};

/// The ServiceAccount that every namespace gets a moment after it was made.
const ACCOUNT: &str = "default";
/// Whoever makes a Pod in that moment waits: so many looks, with a pause between two.
const ACCOUNT_LOOKS: u32 = 50;
const ACCOUNT_PAUSE: Duration = Duration::from_millis(20);
/// A conversion webhook has this long for all that it is asked about owners: as long as any webhook
/// that does not say otherwise. A write can do without its answer.
const OWNERS_TIMEOUT: Duration = Duration::from_secs(10);

/// How a write keeps the record of who owns which field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Whoever changes a field owns it.
    Track,
    /// The object brings its record: an apply has made it.
    Given,
    /// The object brings the old record: what changes belongs to the server.
    Keep,
}

/// What stays the same during one write.
#[derive(Clone)]
pub struct Call<'a> {
    pub api: &'a ApiServer,
    pub user: &'a User,
    pub kind: &'static Kind,
    pub part: Part,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    pub dry_run: bool,
    /// Field manager.
    pub manager: String,
    /// Empty for the main endpoint.
    pub subresource: &'a str,
    pub record: Record,
    /// What the client asks besides, as hooks are shown it.
    pub options: Map<String, Value>,
}

impl<'a> Call<'a> {
    /// A write to the object that the request's path names.
    pub fn of(api: &'a ApiServer, request: &'a Request, part: Part, dry_run: bool) -> Call<'a> {
        let namespace = request.namespace().unwrap_or("");
        Call {
            api,
            user: &request.user,
            kind: request.kind,
            part,
            namespace,
            dry_run,
            manager: super::field_manager(request),
            subresource: &request.attributes.subresource,
            record: Record::Track,
            options: super::given(&request.query, dry_run),
        }
    }

    /// The types that this kind's managers may have written it in.
    pub fn types(&self) -> custom::OwnTypes {
        custom::OwnTypes::of(self.api, self.kind)
    }

    /// Records who owns what of a new state. A webhook that cannot say what managers of other
    /// versions lose does not hold the write up: a deletion may wait for it.
    async fn track(&self, old: Option<&Object>, new: &mut Object) {
        let writer = self.writer();
        if !custom::by_webhook(self.kind) {
            return apply::track(&self.types(), old, new, &writer);
        }
        let sent = &*new;
        let decide = |types: &custom::OwnTypes| {
            let mut new = sent.clone();
            apply::track(types, old, &mut new, &writer);
            new
        };
        let decided = Box::pin(self.types().decide(self.api, decide));
        let decided = tokio::time::timeout(OWNERS_TIMEOUT, decided).await;
        let why = match decided {
            Ok(Ok(tracked)) => {
                *new = tracked;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {OWNERS_TIMEOUT:?}"),
        };
        tracing::warn!(kind = self.kind.kind, why, "owners are compared by names");
        apply::track(&self.types().by_name(), old, new, &writer);
    }

    /// Notes for the timeline whose change a revision is.
    pub fn wrote(&self, revision: Revision) {
        self.api.past().wrote(self.kind, revision, &self.user.name);
    }

    /// Who writes now.
    pub fn writer(&self) -> Writer {
        Writer {
            manager: self.manager.clone(),
            api_version: self.kind.api_version(),
            subresource: self.subresource.to_owned(),
            time: meta::time(jiff::Timestamp::now()),
        }
    }

    /// The stored object of that name as this member sees it now.
    pub fn find(&self, snapshot: &Snapshot, name: &str) -> Result<(Object, Entry), ApiError> {
        let entry = snapshot.get(&stored::key(self.kind, self.namespace, name));
        let entry = entry.ok_or_else(|| ApiError::not_found(self.kind, name))?;
        Ok((stored::decode(self.kind, &entry), entry))
    }

    /// The same, in the version of the path even if a webhook has to be asked for it.
    pub async fn load(&self, snapshot: &Snapshot, name: &str) -> Result<(Object, Entry), ApiError> {
        let (object, entry) = self.find(snapshot, name)?;
        if !custom::is_foreign(self.kind, &object) {
            return Ok((object, entry));
        }
        let mut converted = custom::into_version(self.api, self.kind, vec![object]).await?;
        let object = converted.pop().expect("as many objects come back as are sent");
        Ok((object, entry))
    }

    /// The object that a write stored, as the client sees it.
    fn written(&self, mut object: Object, entry: &Entry) -> Object {
        if !stored::is_plain(self.kind) && !custom::by_webhook(self.kind) {
            return stored::decode(self.kind, entry);
        }
        meta::set_resource_version(&mut object, entry.modified);
        meta::order(&mut object);
        object
    }

    /// What hooks are asked about this write.
    pub fn asked(&self, operation: extensions::Verb, name: &str) -> extensions::Asked<'a> {
        extensions::Asked {
            api: self.api,
            user: self.user,
            kind: self.kind,
            operation,
            subresource: self.subresource,
            namespace: self.namespace,
            name: name.to_owned(),
            dry_run: self.dry_run,
            options: extensions::options(operation, &self.options),
        }
    }

    /// What admission is told of this write.
    fn context<'b>(
        &'b self,
        operation: Operation,
        facts: &'b admission::Facts,
    ) -> admission::Context<'b> {
        admission::Context {
            operation,
            user: self.user,
            kind: self.kind,
            part: self.part,
            namespace: self.namespace,
            facts,
        }
    }
}

/// Why a write did not happen.
pub enum Failure {
    /// Another write came first.
    Raced,
    /// It must not, or could not.
    Refused(ApiError),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Failure::Refused(error)
    }
}

/// What a write led to.
pub struct Written {
    /// Whether anything was changed by it.
    pub stored: bool,
    /// As stored; if the write took its last finalizer and so removed it, its last state.
    pub object: Object,
    /// For the client.
    pub warnings: Vec<String>,
}

/// Waits for the account of a Pod whose namespace was only just made.
async fn until_account(call: &Call<'_>, pod: &Object) {
    let named = pod.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("");
    if !matches!(named, "" | ACCOUNT) {
        return;
    }
    let kind = |plural| wherry_resources::kind("", "v1", plural).expect("a built-in kind");
    let (accounts, namespaces) = (kind("serviceaccounts"), kind("namespaces"));
    let account = stored::key(accounts, call.namespace, ACCOUNT);
    let namespace = stored::key(namespaces, "", call.namespace);
    let mut state = call.api.store().current();
    for _ in 0..ACCOUNT_LOOKS {
        if state.get(&account).is_some() {
            return;
        }
        let Ok(newest) = call.api.latest().await else { return };
        state = newest;
        let lives = |entry: Entry| !meta::is_deleting(&stored::decode(namespaces, &entry));
        if !state.get(&namespace).is_some_and(lives) || state.get(&account).is_some() {
            return;
        }
        tokio::time::sleep(ACCOUNT_PAUSE).await;
    }
}

/// Stores a new object.
pub async fn insert(call: &Call<'_>, mut object: Object) -> Result<Written, Failure> {
    defaults::apply(call.kind, &mut object);
    check_type(call.kind, &object)?;
    if call.kind.is("", "Pod") {
        until_account(call, &object).await;
    }
    if call.record == Record::Track {
        // What the server itself says of a new object belongs to nobody.
        let status = match call.kind.has_status {
            true => object.as_object_mut().and_then(|fields| fields.shift_remove("status")),
            false => None,
        };
        call.track(None, &mut object).await;
        if let Some(status) = status {
            object["status"] = status;
        }
    }
    let Admitted { mut object, mut gathered, warnings } = admitted(call, object).await?;
    let mut heard = extensions::Heard { warnings };
    let asked = call.asked(extensions::Verb::Create, meta::name(&object));
    if extensions::mutate(&asked, &mut object, None, &mut heard).await? {
        check_type(call.kind, &object)?;
        if call.kind.is("", "Pod") {
            // It may name another account, another class.
            let snapshot = gathered.snapshot.clone();
            gathered.facts = facts::gather(call, &object, None, snapshot)?.facts;
        }
        let context = call.context(Operation::Create, &gathered.facts);
        admission::admit_again(&context, &mut object, None)?;
    }
    let mut errors = validate::create(call.kind, &object);
    if errors.is_empty() {
        errors = custom::complaints(call.api, call.kind, &object, None);
    }
    let name = meta::name(&object).to_owned();
    if !errors.is_empty() {
        return Err(ApiError::invalid(call.kind, &name, errors).into());
    }
    heard.warnings.extend(checked(call, &object, &gathered.facts).await?);
    extensions::validate(&asked, Some(&object), None, &mut heard).await?;
    let warnings = heard.take();
    extensions::settle(call.api, call.kind, &mut object);
    let key = stored::key(call.kind, call.namespace, &name);
    if call.dry_run {
        if gathered.snapshot.get(&key).is_some() {
            return Err(Failure::Raced);
        }
        quota::take(call, &object, None).await?;
        return Ok(Written { stored: false, object, warnings });
    }
    let value = to_store(call, &mut object).await?;
    let taken = quota::take(call, &object, None).await?;
    quota::still_counts(call, taken.as_ref())?;
    let put = call.api.store().put(key, value, Precondition::Absent).await;
    gathered.reservation.settle(matches!(put, Err(WriteError::Unknown)));
    quota::settle(call, &object, taken, &put).await;
    let entry = put.map_err(|error| failure(call.kind, &name, error))?;
    call.wrote(entry.modified);
    Ok(Written { stored: true, object: call.written(object, &entry), warnings })
}

/// A new object that may be made.
struct Admitted {
    object: Object,
    gathered: facts::Gathered,
    warnings: Vec<String>,
}

/// Lets admission judge a new object by this member's own state, and again by the newest one before
/// it is refused (see `state`). What must not be given away twice, such as the addresses of
/// Services and the names of custom kinds, is judged by the newest state only.
async fn admitted(call: &Call<'_>, object: Object) -> Result<Admitted, Failure> {
    let shares = call.kind.is("", "Service")
        || call.kind.is("apiextensions.k8s.io", "CustomResourceDefinition");
    if !shares
        && !call.dry_run
        && let Some(own) = call.api.store().fresh()
        && let Ok(admitted) = admitted_by(call, object.clone(), own)
    {
        return Ok(admitted);
    }
    Ok(admitted_by(call, object, call.api.latest().await?)?)
}

fn admitted_by(call: &Call<'_>, object: Object, snapshot: Snapshot) -> Result<Admitted, ApiError> {
    let mut object = custom::settle(call.kind, object, &snapshot);
    let gathered = facts::gather(call, &object, None, snapshot)?;
    let context = call.context(Operation::Create, &gathered.facts);
    let warnings = admission::admit(&context, &mut object, None)?;
    Ok(Admitted { object, gathered, warnings })
}

/// The checks of a new object that hooks have seen; like admission, they refuse by the newest state
/// only.
async fn checked(
    call: &Call<'_>,
    object: &Object,
    facts: &admission::Facts,
) -> Result<Vec<String>, ApiError> {
    let checked = admission::check(&call.context(Operation::Create, facts), object, None);
    if checked.is_ok() {
        return checked;
    }
    let newest = facts::gather(call, object, None, call.api.latest().await?)?;
    admission::check(&call.context(Operation::Create, &newest.facts), object, None)
}

/// Replaces `old` (stored as `entry`) by `new`. A write that changes nothing stores nothing. An
/// object that is being deleted goes when this takes its last finalizer.
pub async fn replace(
    call: &Call<'_>,
    old: &Object,
    entry: &Entry,
    mut new: Object,
) -> Result<Written, Failure> {
    let given = meta::take_managed_fields(&mut new);
    let mut new = prepare::updated(call.kind, call.part, old, new)?;
    meta::set_managed_fields(&mut new, given);
    if call.part == Part::Main {
        defaults::drop_outdated(call.kind, &mut new, old);
    }
    // A binding changes a few fields of a Pod that was made whole when it was stored.
    if call.part != Part::Binding {
        defaults::apply(call.kind, &mut new);
        check_type(call.kind, &new)?;
    }
    if call.record == Record::Track {
        call.track(Some(old), &mut new).await;
    }
    let snapshot = call.api.store().current();
    if call.part == Part::Main {
        new = custom::settle(call.kind, new, &snapshot);
    }
    let mut gathered = facts::gather(call, &new, Some(old), snapshot)?;
    if admission::pod_standards::tightens(call.kind, &new, old) {
        let inside = facts::left_inside(call, &new, &gathered.snapshot);
        gathered.facts.left_inside = Box::pin(inside).await;
    }
    let context = call.context(Operation::Update, &gathered.facts);
    let warnings = admission::admit(&context, &mut new, Some(old))?;
    let name = meta::name(old);
    let mut heard = extensions::Heard { warnings };
    let asked = call.asked(extensions::Verb::Update, name);
    // What the server does about a binding or an eviction was admitted as what was sent.
    let is_own = call.record == Record::Keep;
    if !is_own && extensions::mutate(&asked, &mut new, Some(old), &mut heard).await? {
        check_type(call.kind, &new)?;
        admission::admit_again(&context, &mut new, Some(old))?;
    }
    let mut errors = match call.part {
        Part::Main | Part::Finalize => validate::update(call.kind, &new, old),
        // `bind` has made the one change that a binding is, and checked that it may.
        Part::Binding => Vec::new(),
        Part::EphemeralContainers => validate::update_ephemeral_containers(call.kind, &new, old),
        Part::Resize => validate::resize(call.kind, &new, old),
        // The rules for changes of a spec are the main endpoint's; these parts have their own.
        _ => validate::update_status(call.kind, &new, old),
    };
    if errors.is_empty() {
        errors = custom::complaints(call.api, call.kind, &new, Some(old));
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid(call.kind, name, errors).into());
    }
    heard.warnings.extend(admission::check(&context, &new, Some(old))?);
    if !is_own {
        extensions::validate(&asked, Some(&new), Some(old), &mut heard).await?;
    }
    let warnings = heard.take();
    let _counted = quota::counted(call, &mut new).await?;
    prepare::count_generation(call.kind, call.part, old, &mut new);
    if call.part == Part::Main {
        extensions::settle(call.api, call.kind, &mut new);
    }
    apply::settle_times(old, &mut new);
    let removed = prepare::is_gone(call.kind, &new);
    if (new == *old && !removed) || call.dry_run {
        meta::order(&mut new);
        return Ok(Written { stored: false, object: new, warnings });
    }
    let key = stored::key(call.kind, call.namespace, name);
    let precondition = Precondition::At(entry.modified);
    if removed {
        let between = quota::removing(call).await;
        let deleted = call.api.store().delete(key, precondition).await;
        let (revision, _) = deleted.map_err(|error| failure(call.kind, name, error))?;
        call.wrote(revision);
        quota::removed(call, old, between).await;
        meta::set_resource_version(&mut new, revision);
        meta::order(&mut new);
        return Ok(Written { stored: true, object: new, warnings });
    }
    let value = to_store(call, &mut new).await?;
    let taken = quota::take(call, &new, Some(old)).await?;
    // What is being deleted must be able to go, also from a disk that is nearly full.
    let store = match meta::is_deleting(old) {
        true => call.api.store().making_room(),
        false => call.api.store().clone(),
    };
    quota::still_counts(call, taken.as_ref())?;
    let put = store.put(key, value, precondition).await;
    gathered.reservation.settle(matches!(put, Err(WriteError::Unknown)));
    quota::settle(call, &new, taken, &put).await;
    let entry = put.map_err(|error| failure(call.kind, name, error))?;
    call.wrote(entry.modified);
    Ok(Written { stored: true, object: call.written(new, &entry), warnings })
}

/// What is stored of an object, whose resourceVersion is not needed any more.
async fn to_store(call: &Call<'_>, object: &mut Object) -> Result<Bytes, ApiError> {
    if stored::is_plain(call.kind) {
        return Ok(stored::plain_bytes(object));
    }
    let stored = custom::into_storage(call.api, call.kind, object).await?;
    Ok(stored::into_bytes(call.kind, stored))
}

/// A mistyped field must not get into the store: typed clients could not read any list with it.
fn check_type(kind: &'static Kind, object: &Object) -> Result<(), ApiError> {
    openapi::check_type(kind, object)
        .map_err(|why| body::undecodable(&kind.api_version(), kind.kind, &why))
}

/// What a failed write means.
pub fn failure(kind: &Kind, name: &str, error: WriteError) -> Failure {
    match error {
        WriteError::Conflict { .. } => Failure::Raced,
        WriteError::TooLarge { .. } => Failure::Refused(ApiError::TooLarge(format!(
            "{} {name:?} does not fit: {error}",
            kind.qualified()
        ))),
        WriteError::Unknown => Failure::Refused(ApiError::Timeout {
            message: format!(
                "{error}; read {} {name:?} to see whether it was done",
                kind.qualified()
            ),
            causes: Vec::new(),
            retry_after_seconds: 1,
        }),
        WriteError::Full => Failure::Refused(ApiError::Full),
        other => Failure::Refused(ApiError::Unavailable(other.to_string())),
    }
}
