//! The gate as its objects want it: Ingresses and Gateways, and what becomes of them, one table for
//! the worker that serves them.
//!
//! Read are all Ingresses and IngressClasses, all objects of the Gateway API, and the Secrets with
//! certificates that they name, each by a watch of its own, so that a renewed certificate is served
//! within a moment. An Ingress is served here if its class has our controller, or if it names none;
//! a Gateway if its class has ours.

mod gateway;
mod ingress;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use k8s_openapi::api::{core::v1::Secret, networking::v1::Ingress};
use kube::{
    Api,
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::{CancellationToken, DropGuard};
use wherry_resources::gateway::{
    GROUP, HTTP_PORT, HTTPS_PORT, World,
    objects::{Kind, Parsed},
};

pub use self::ingress::{read_class, read_ingress};
use super::{
    pods::{Input, Name},
    watch::{self, Change},
};
use crate::protocol::GateTable;

/// How long the table waits for a Secret; one of which nobody tells until then counts as not there.
const SECRET_WAIT: Duration = Duration::from_secs(15);

/// Certificate and key, as they stand in the Secret.
pub type Pair = (String, String);

/// What the gate hears.
#[derive(Debug)]
pub enum GateInput {
    /// An Ingress.
    Ingress(Change<(Name, Ingress), Name>),
    /// The controller of an IngressClass.
    Class(Change<(String, String), String>),
    /// An object of the Gateway API.
    Object(Kind, Change<(Name, Parsed), Name>),
    /// Certificate and key of a Secret that is named.
    Secret {
        /// Which Secret.
        name: Name,
        /// None: it is not there, or holds none.
        pair: Option<Pair>,
    },
}

/// Labels of namespaces.
pub type Labels = BTreeMap<String, BTreeMap<String, String>>;

/// All that the table is made of.
pub struct Gate {
    ports: (u16, u16),
    ingresses: BTreeMap<Name, Ingress>,
    /// Controllers of the classes.
    classes: HashMap<String, String>,
    /// Of the Gateway API.
    objects: BTreeMap<(Kind, Name), Parsed>,
    /// What the Secrets hold; None: nothing that can be used.
    secrets: BTreeMap<Name, Option<Pair>>,
    watches: BTreeMap<Name, DropGuard>,
    /// Ingresses and their classes have been listed.
    synced: (bool, bool),
    /// These kinds have been listed, or are not there.
    listed: BTreeSet<Kind>,
    sent: GateTable,
    client: kube::Client,
    inputs: mpsc::Sender<Input>,
    tasks: JoinSet<()>,
}

impl Gate {
    /// Nothing is known yet. `ports` are those for HTTP and HTTPS.
    pub fn new(ports: (u16, u16), client: kube::Client, inputs: mpsc::Sender<Input>) -> Gate {
        Gate {
            ports,
            ingresses: BTreeMap::new(),
            classes: HashMap::new(),
            objects: BTreeMap::new(),
            secrets: BTreeMap::new(),
            watches: BTreeMap::new(),
            synced: (false, false),
            listed: BTreeSet::new(),
            sent: GateTable::default(),
            client,
            inputs,
            tasks: JoinSet::new(),
        }
    }

    /// What Gateways call a port of this node.
    pub fn said(&self, port: u16) -> i64 {
        match port {
            port if port == self.ports.0 => HTTP_PORT,
            port if port == self.ports.1 => HTTPS_PORT,
            port => port.into(),
        }
    }

    /// Takes in what was heard.
    pub fn take(&mut self, input: GateInput) {
        match input {
            GateInput::Ingress(Change::Apply((name, ingress))) => {
                self.ingresses.insert(name, ingress);
            }
            GateInput::Ingress(Change::Delete(name)) => _ = self.ingresses.remove(&name),
            GateInput::Ingress(Change::Synced) => self.synced.0 = true,
            GateInput::Class(Change::Apply((name, controller))) => {
                self.classes.insert(name, controller);
            }
            GateInput::Class(Change::Delete(name)) => _ = self.classes.remove(&name),
            GateInput::Class(Change::Synced) => self.synced.1 = true,
            GateInput::Object(kind, Change::Apply((name, object))) => {
                self.objects.insert((kind, name), object);
            }
            GateInput::Object(kind, Change::Delete(name)) => {
                self.objects.remove(&(kind, name));
            }
            GateInput::Object(kind, Change::Synced) => _ = self.listed.insert(kind),
            GateInput::Secret { name, pair } => {
                if self.watches.contains_key(&name) {
                    self.secrets.insert(name, pair);
                }
                return;
            }
        }
        self.watch_secrets();
    }

    /// Whether everything that may be served has been listed.
    pub fn is_listed(&self) -> bool {
        self.synced == (true, true) && self.listed.len() == Kind::ALL.len()
    }

    /// Whether there is anything to serve.
    pub fn is_needed(&self) -> bool {
        let ours = |one: &Ingress| ingress::is_ours(one, &self.classes);
        self.ingresses.values().any(ours) || self.world(Labels::new()).serves()
    }

    fn world(&self, namespaces: Labels) -> World {
        let mut world = World { namespaces, ..World::default() };
        self.objects.values().for_each(|object| world.add(object));
        world
    }

    /// Follows exactly the Secrets that are named.
    fn watch_secrets(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        let ours = self.ingresses.values().filter(|one| ingress::is_ours(one, &self.classes));
        let mut wanted: BTreeSet<Name> = ours.flat_map(ingress::secrets).collect();
        let world = self.world(Labels::new());
        let gateways = world.gateways.iter().filter(|gateway| world.is_ours(gateway));
        wanted.extend(gateways.flat_map(|gateway| world.secrets(gateway)));
        self.watches.retain(|name, _| wanted.contains(name));
        self.secrets.retain(|name, _| wanted.contains(name));
        for name in wanted {
            if self.watches.contains_key(&name) {
                continue;
            }
            let stop = CancellationToken::new();
            let (client, inputs) = (self.client.clone(), self.inputs.clone());
            self.tasks.spawn(follow(client, name.clone(), inputs, SECRET_WAIT, stop.clone()));
            self.watches.insert(name, stop.drop_guard());
        }
    }

    /// The table, if all of it is known.
    pub fn table(&self, namespaces: &Labels) -> Option<GateTable> {
        let known = self.watches.keys().all(|name| self.secrets.contains_key(name));
        if !self.is_listed() || !known {
            return None;
        }
        let mut table = GateTable::default();
        let ingresses = self.ingresses.values();
        ingress::add(&mut table, ingresses, &self.classes, &self.secrets, self.ports);
        gateway::add(&mut table, &self.world(namespaces.clone()), &self.secrets, self.ports);
        Some(table)
    }

    /// The table, if it is another one than the one sent last.
    pub fn news(&mut self, namespaces: &Labels) -> Option<GateTable> {
        let table = self.table(namespaces).filter(|table| *table != self.sent)?;
        self.sent = table.clone();
        Some(table)
    }
}

/// Kinds of the Gateway API.
pub const KINDS: [Kind; 5] = Kind::ALL;

/// How a kind of the Gateway API is watched: it is described by a definition, not built in.
pub fn api(client: &kube::Client, kind: Kind) -> Api<DynamicObject> {
    let names = GroupVersionKind::gvk(GROUP, kind.version(), kind.name());
    let resource = ApiResource::from_gvk_with_plural(&names, kind.plural());
    Api::all_with(client.clone(), &resource)
}

/// What is needed of an object of the Gateway API, by its name.
pub fn read_object(kind: Kind, object: &DynamicObject) -> Option<(Name, (Name, Parsed))> {
    let meta = &object.metadata;
    let name = (meta.namespace.clone().unwrap_or_default(), meta.name.clone()?);
    let value = serde_json::to_value(object).ok()?;
    let parsed = Parsed::read(kind, &value);
    if parsed.is_none() {
        tracing::warn!(kind = kind.name(), ?name, "an object has a form that is not understood");
    }
    Some((name.clone(), (name, parsed?)))
}

/// Reports what a Secret holds, at each change; also that nobody has said so for `wait`.
async fn follow(
    client: kube::Client,
    name: Name,
    inputs: mpsc::Sender<Input>,
    wait: Duration,
    stop: CancellationToken,
) {
    let api = Api::<Secret>::namespaced(client, &name.0);
    let fields = format!("metadata.name={}", name.1);
    let (found, told) = (AtomicBool::new(false), AtomicBool::new(false));
    let tell = |pair: Option<Pair>| {
        told.store(true, Ordering::Relaxed);
        let (name, inputs) = (name.clone(), inputs.clone());
        async move {
            // The loop is gone only when the agent ends.
            let _ = inputs.send(Input::Gate(GateInput::Secret { name, pair })).await;
        }
    };
    let report = |change: Change<Option<Pair>, ()>| {
        let pair = match change {
            Change::Apply(pair) => {
                found.store(true, Ordering::Relaxed);
                Some(pair)
            }
            Change::Delete(()) => {
                found.store(false, Ordering::Relaxed);
                Some(None)
            }
            Change::Synced => (!found.load(Ordering::Relaxed)).then_some(None),
        };
        let telling = pair.map(&tell);
        async move {
            if let Some(telling) = telling {
                telling.await;
            }
        }
    };
    // Who names a Secret must not keep everybody's rules from being served.
    let late = async {
        tokio::time::sleep(wait).await;
        if !told.load(Ordering::Relaxed) {
            let (namespace, secret) = &name;
            tracing::warn!(namespace, secret, "nobody says what the Secret of a certificate holds");
            tell(None).await;
        }
        std::future::pending::<()>().await;
    };
    let read = |secret: Secret| Some(((), pair(secret)));
    tokio::select! {
        () = watch::run(api, Some(fields), read, report, stop) => {}
        () = late => {}
    }
}

/// Certificate and key in a Secret.
fn pair(secret: Secret) -> Option<Pair> {
    let mut data = secret.data?;
    let mut text = |key| String::from_utf8(data.remove(key)?.0).ok();
    Some((text("tls.crt")?, text("tls.key")?))
}
