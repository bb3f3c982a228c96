//! Gathers from a snapshot what admission needs to know, so that admission itself reads nothing.

use super::{Part, write::Call};
use crate::apiserver::{
    admission::{
        Facts,
        grants::Grant,
        network, owners,
        pod_standards::{self, Inside},
        secret,
        service::{Granted, Known, Reservation},
        storage,
    },
    authorize,
    errors::ApiError,
    follow::Fold,
    pieces::{self, Pace},
    rbac::RoleKey,
    request::Attributes,
    stored,
    tokens::{Bound, Claims, ISSUER, Named},
};
use bytes::Bytes;
use memchr::memmem;
use serde_json::Value;
use std::time::Instant;
use wherry_resources::keys::{self, Key};
use wherry_resources::{Object, meta, rbac};
use wherry_store::{Entry, Snapshot};

/// What was gathered, and the state it was read from.
pub struct Gathered {
    pub facts: Facts,
    pub snapshot: Snapshot,
    /// Addresses and ports that are taken while this write is on its way.
    pub reservation: Reservation,
}

/// Reads what admission of this object needs.
pub fn gather(
    call: &Call<'_>,
    new: &Object,
    old: Option<&Object>,
    snapshot: Snapshot,
) -> Result<Gathered, ApiError> {
    let find = |plural: &str, group: &str, namespace: &str, name: &str| -> Option<Object> {
        let kind = wherry_resources::kind(group, "v1", plural)?;
        let entry = snapshot.get(&stored::key(kind, namespace, name))?;
        // Each new Pod has some of these read; who manages their fields is nobody's matter here.
        Some(stored::decode_to_print(kind, &entry.value, entry.modified))
    };
    let mut facts = Facts { random: rand::random(), ..Facts::default() };
    let creates = old.is_none();
    let of_pods = pod_standards::concerns(call.part, call.kind.group, call.kind.plural);
    if call.kind.namespaced && (creates || of_pods) {
        facts.namespace = find("namespaces", "", "", call.namespace);
    }
    if creates && call.kind.is("", "Pod") {
        let text = |path: &str| new.pointer(path).and_then(Value::as_str).unwrap_or("");
        let account = Some(text("/spec/serviceAccountName")).filter(|name| !name.is_empty());
        let account = account.unwrap_or("default");
        facts.service_account = find("serviceaccounts", "", call.namespace, account);
        facts.limit_ranges = all_in(&snapshot, "limitranges", call.namespace);
        facts.priority_class = match text("/spec/priorityClassName") {
            "" => default_priority_class(&snapshot),
            name => find("priorityclasses", "scheduling.k8s.io", "", name),
        };
    }
    if call.part == Part::Resize {
        facts.limit_ranges = all_in(&snapshot, "limitranges", call.namespace);
    }
    if call.part == Part::Main && call.kind.is("", "PersistentVolumeClaim") {
        facts.limit_ranges = all_in(&snapshot, "limitranges", call.namespace);
        let class = new.pointer("/spec/storageClassName").and_then(Value::as_str);
        match old {
            None if class.is_none() => {
                let classes = classes(&snapshot, "storage.k8s.io", "storageclasses");
                let class = storage::default_class(&classes, storage::DEFAULT_CLASS);
                facts.default_storage_class = class;
            }
            Some(old) if storage::grows(new, old) => {
                let name = class.unwrap_or("");
                facts.storage_class = find("storageclasses", "storage.k8s.io", "", name);
            }
            _ => {}
        }
    }
    if creates && call.kind.is("networking.k8s.io", "Ingress") {
        let classes = classes(&snapshot, "networking.k8s.io", "ingressclasses");
        let class = storage::default_class(&classes, network::DEFAULT_CLASS);
        facts.default_ingress_class = class;
    }
    if call.kind.is("scheduling.k8s.io", "PriorityClass") {
        let other = default_priority_class(&snapshot);
        let other = other.map(|class| meta::name(&class).to_owned());
        facts.other_default_class = other.filter(|name| name != meta::name(new));
    }
    if creates && call.kind.is("", "Secret") {
        facts.token = token(call, new);
    }
    facts.may_sign = may_sign(call, new);
    if !authorize::is_unlimited(call.user) {
        if matches!(call.kind.plural, "endpoints" | "endpointslices") {
            facts.machines = machines(call, &snapshot);
        }
        facts.grant = grant(call, new, old);
        facts.owners = owner_rights(call, new, old);
    }
    let mut reservation = Reservation::none();
    if call.part == Part::Main && call.kind.is("", "Service") {
        let read = |look: &dyn Fn(&Known) -> Granted| {
            call.api.services().read(call.api.store(), |known| look(known))
        };
        let (taken, held) = call.api.allocations().reserve(read, new, old, facts.random)?;
        facts.service = Some(taken);
        reservation = held;
    }
    Ok(Gathered { facts, snapshot, reservation })
}

/// Judges the Pods of a namespace that gets a stricter level, by turns. Returns warnings.
pub async fn left_inside(call: &Call<'_>, namespace: &Object, snapshot: &Snapshot) -> Vec<String> {
    let kind = wherry_resources::kind("", "v1", "pods").expect("a kind of the core group");
    let prefix = stored::prefix(kind, Some(meta::name(namespace)));
    let (snapshot, mut last) = (snapshot.clone(), None::<Bytes>);
    let until = Instant::now() + pod_standards::TIME_MAX;
    let judge = move |inside: &mut Inside, pace: &Pace| {
        for (key, entry) in snapshot.range(&prefix, last.as_deref()) {
            inside.take(Instant::now() >= until, || stored::decode_wanted(&entry.value));
            if pace.is_over() {
                last = Some(key);
                return false;
            }
        }
        true
    };
    let share = call.api.fairness().share(call.user);
    let inside = pieces::steps(share, Inside::of(namespace), judge).await;
    inside.warnings(namespace)
}

/// Prefix of the store's keys of all Services.
pub fn services() -> Vec<u8> {
    keys::of_type("", "services")
}

impl Fold for Known {
    fn put(&mut self, key: &Key<'_>, entry: &Entry) {
        match serde_json::from_slice(&entry.value) {
            Ok(service) => self.has(key.namespace, key.name, &service),
            Err(_) => self.gone(key.namespace, key.name),
        }
    }

    fn remove(&mut self, key: &Key<'_>) {
        self.gone(key.namespace, key.name);
    }
}

/// Addresses of the nodes and of this member.
fn machines(call: &Call<'_>, snapshot: &Snapshot) -> Vec<String> {
    let nodes = all_in(snapshot, "nodes", "");
    let addresses = nodes.iter().flat_map(|node| meta::items(&node["status"], "addresses"));
    let mut found: Vec<String> =
        addresses.map(|address| meta::text(address, "address").to_owned()).collect();
    found.push(call.api.advertise().ip().to_string());
    found
}

/// All objects of a kind of the core group in a namespace, by name.
fn all_in(snapshot: &Snapshot, plural: &str, namespace: &str) -> Vec<Object> {
    let kind = wherry_resources::kind("", "v1", plural).expect("a kind of the core group");
    let found = snapshot.range(&stored::prefix(kind, Some(namespace)), None);
    found.map(|(_, entry)| stored::decode(kind, &entry)).collect()
}

/// All classes of a kind.
fn classes(snapshot: &Snapshot, group: &str, plural: &str) -> Vec<Object> {
    let kind = wherry_resources::kind(group, "v1", plural).expect("a built-in kind");
    let classes = snapshot.range(&stored::prefix(kind, None), None);
    classes.map(|(_, entry)| stored::decode(kind, &entry)).collect()
}

/// What a new Secret for a service account's token is filled with, if it is one and its account is
/// there.
fn token(call: &Call<'_>, new: &Object) -> Option<secret::Content> {
    let name = meta::annotation(new, secret::ACCOUNT).filter(|_| new["type"] == secret::TYPE)?;
    let account = call.api.core_object("serviceaccounts", call.namespace, name)?;
    let bound = Bound {
        namespace: call.namespace.to_owned(),
        node: None,
        pod: None,
        secret: Some(Named::of(new)),
        serviceaccount: Named::of(&account),
    };
    let audiences = vec![ISSUER.to_owned()];
    let claims = Claims::new(bound, audiences, jiff::Timestamp::now(), secret::SECONDS);
    let token = call.api.tokens().sign(&claims).ok()?;
    Some(secret::Content { account, token, ca_pem: call.api.ca_pem().to_owned() })
}

/// Whether the user may approve for, or sign as, the signer of a certificate request: by its name,
/// or by its domain.
fn may_sign(call: &Call<'_>, new: &Object) -> bool {
    let verb = match call.part {
        Part::Approval => "approve",
        Part::Status if call.kind.is("certificates.k8s.io", "CertificateSigningRequest") => "sign",
        _ => return false,
    };
    let signer = new.pointer("/spec/signerName").and_then(Value::as_str).unwrap_or("");
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    [signer.to_owned(), format!("{domain}/*")].into_iter().any(|name| {
        let asked = Attributes {
            verb: verb.to_owned(),
            is_resource: true,
            group: "certificates.k8s.io".to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            named: true,
            ..Attributes::default()
        };
        call.api.may(call.user, &asked)
    })
}

/// What the user may give by writing this role or binding.
fn grant(call: &Call<'_>, new: &Object, old: Option<&Object>) -> Option<Grant> {
    if call.kind.group != rbac::GROUP || call.part != Part::Main {
        return None;
    }
    let (verb, plural, name, given) = match call.kind.plural {
        "roles" | "clusterroles" => {
            let name = old.map_or("", |old| meta::name(old)).to_owned();
            ("escalate", call.kind.plural, name, Ok(Vec::new()))
        }
        _ => {
            let role = RoleKey::of(new, call.namespace);
            let rules = call.api.roles().role(&role).map(|rules| rules.to_vec());
            ("bind", role.plural(), role.name.clone(), rules.ok_or(role))
        }
    };
    let asked = Attributes {
        verb: verb.to_owned(),
        is_resource: true,
        group: rbac::GROUP.to_owned(),
        version: "*".to_owned(),
        namespace: call.namespace.to_owned(),
        resource: plural.to_owned(),
        named: !name.is_empty(),
        name,
        ..Attributes::default()
    };
    let unlimited = call.api.may(call.user, &asked);
    let held = match unlimited {
        true => Vec::new(),
        false => call.api.roles().rules_of(call.user, call.namespace),
    };
    Some(Grant { unlimited, held, given })
}

/// What the user may do to the object and its owners, if the write changes who these are.
fn owner_rights(call: &Call<'_>, new: &Object, old: Option<&Object>) -> Option<owners::Rights> {
    if !owners::change(new, old) {
        return None;
    }
    let delete = Attributes {
        verb: "delete".to_owned(),
        is_resource: true,
        group: call.kind.group.to_owned(),
        version: call.kind.version.to_owned(),
        namespace: call.namespace.to_owned(),
        resource: call.kind.plural.to_owned(),
        name: meta::name(new).to_owned(),
        named: true,
        ..Attributes::default()
    };
    let finalize = owners::asked(call.kind, call.namespace, new, old);
    Some(owners::Rights {
        delete: old.is_some() && call.api.may(call.user, &delete),
        finalize_owners: finalize.iter().all(|asked| call.api.may(call.user, asked)),
    })
}

/// The PriorityClass marked as the default; the highest one if several are.
fn default_priority_class(snapshot: &Snapshot) -> Option<Object> {
    let kind = wherry_resources::kind("scheduling.k8s.io", "v1", "priorityclasses")?;
    let classes = snapshot.range(&stored::prefix(kind, None), None);
    // Each new Pod has this asked, and nearly no class is one.
    let marked = classes
        .filter(|(_, entry)| memmem::find(&entry.value, b"\"globalDefault\":true").is_some());
    let classes = marked.map(|(_, entry)| stored::decode(kind, &entry));
    classes
        .filter(|class| class["globalDefault"] == true && !meta::is_deleting(class))
        .max_by_key(|class| class["value"].as_i64().unwrap_or(0))
}
