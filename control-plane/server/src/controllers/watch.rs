//! The watches that feed the cache: one a kind, kept up over errors, as one merged stream of what
//! was seen.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use futures::stream::{self, BoxStream, SelectAll};
use futures::{FutureExt as _, Stream, StreamExt as _};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher as watch};
use serde_json::Value;
use tokio::sync::oneshot;
use wherry_resources::Kind;
use wherry_resources::custom::{Definition, Rows};

use super::addresses::pool;
use super::bootstrap::front_proxy;
use super::cache::{Bare, Cache, Object, Seen, Typed, kind_row, trim};
use super::gateway;
use super::reconcile::Watched;
use super::serviceaccount::ROOT_CA;
use crate::contain;

/// First and longest pause before a watch that failed is tried again.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A pause that doubles.
pub struct Pause(Duration);

impl Default for Pause {
    fn default() -> Pause {
        Pause(PAUSE_FIRST)
    }
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE_MAX);
        Some(pause)
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        *self = Pause::default();
    }
}

/// Lets watches begin one after the other: each reads all of its kind at first, and together they
/// would keep everybody waiting who wants an answer then.
pub fn one_by_one(
    watches: Vec<BoxStream<'static, Watched>>,
    every: Duration,
) -> Vec<BoxStream<'static, Watched>> {
    if every.is_zero() {
        return watches;
    }
    let later = move |(number, watch): (u32, BoxStream<'static, Watched>)| {
        let begun = async move {
            tokio::time::sleep(every * number).await;
            watch
        };
        begun.flatten_stream().boxed()
    };
    (0..).zip(watches).map(later).collect()
}

/// Watches whole objects of a kind and makes the cache hold them so.
pub fn whole<T>(client: &kube::Client, cache: &mut Cache) -> BoxStream<'static, Watched>
where
    T: Typed + kube::Resource<DynamicType = ()>,
{
    cache.hold::<T>();
    let events = watch(Api::<T>::all(client.clone()), watcher::Config::default());
    seen(kind_row::<T>(), events, |mut object| {
        trim(object.metadata_mut());
        Object::new(object)
    })
}

/// Watches ConfigMaps, without their content but for those that controllers own or read.
pub fn config_maps(client: &kube::Client, cache: &mut Cache) -> BoxStream<'static, Watched> {
    cache.hold::<ConfigMap>();
    let events = watch(Api::<ConfigMap>::all(client.clone()), watcher::Config::default());
    seen(kind_row::<ConfigMap>(), events, |mut object| {
        trim(&mut object.metadata);
        let name = object.metadata.name.as_deref().unwrap_or("");
        let place = (object.metadata.namespace.as_deref().unwrap_or(""), name);
        if ![ROOT_CA, front_proxy::CONFIG].contains(&name) && place != pool::CONFIG_MAP {
            object.data = None;
        }
        object.binary_data = None;
        Object::new(object)
    })
}

/// Watches Secrets without their content, but for when a bootstrap token expires, and whether they
/// hold a certificate.
pub fn secrets(client: &kube::Client, cache: &mut Cache) -> BoxStream<'static, Watched> {
    cache.hold::<Secret>();
    let events = watch(Api::<Secret>::all(client.clone()), watcher::Config::default());
    seen(kind_row::<Secret>(), events, |mut object| {
        trim(&mut object.metadata);
        object.string_data = None;
        if let Some(data) = &mut object.data {
            let certified = gateway::holds_certificate(data);
            data.retain(|key, _| key == "expiration");
            if certified {
                data.insert(gateway::CERTIFICATE.to_owned(), ByteString::default());
            }
        }
        Object::new(object)
    })
}

/// Watches the metadata of a kind's objects.
pub fn bare(client: &kube::Client, kind: &'static Kind) -> BoxStream<'static, Watched> {
    let names = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
    let resource = ApiResource::from_gvk_with_plural(&names, kind.plural);
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client.clone(), &resource);
    seen(kind, watch(api, watcher::Config::default()), |object| {
        let mut meta = object.metadata;
        trim(&mut meta);
        Object::new(Bare(meta))
    })
}

/// Watches objects of the Gateway API.
fn gateways(
    client: &kube::Client,
    kind: &'static Kind,
    of: gateway::Kind,
) -> BoxStream<'static, Watched> {
    let names = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
    let resource = ApiResource::from_gvk_with_plural(&names, kind.plural);
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    seen(kind, watch(api, watcher::Config::default()), move |object| {
        let value = serde_json::to_value(&object).expect("what was JSON is JSON");
        gateway::hold(of, object.metadata, &value)
    })
}

/// Watches the metadata of all custom kinds, whatever CRDs come and go. Of a kind with several
/// versions one is watched; when a CRD goes, its objects are said to be gone.
pub fn custom(client: kube::Client) -> BoxStream<'static, Watched> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let changes = watch(definitions, watcher::Config::default()).backoff(Pause::default());
    let state = Custom {
        client,
        changes: changes.boxed(),
        definitions: BTreeMap::new(),
        rows: Rows::default(),
        watched: SelectAll::new(),
        stops: HashMap::new(),
        ready: VecDeque::new(),
    };
    stream::unfold(state, |mut state| async move {
        let next = state.next().await?;
        Some((next, state))
    })
    .boxed()
}

/// The watches of custom kinds.
struct Custom {
    client: kube::Client,
    changes: BoxStream<'static, watcher::Result<Event<CustomResourceDefinition>>>,
    /// By name, as JSON.
    definitions: BTreeMap<String, Value>,
    rows: Rows,
    watched: SelectAll<BoxStream<'static, Watched>>,
    /// Ends the watch of a kind, by the address of its row.
    stops: HashMap<usize, (&'static Kind, oneshot::Sender<()>)>,
    /// To be said before anything else.
    ready: VecDeque<Watched>,
}

impl Custom {
    async fn next(&mut self) -> Option<Watched> {
        loop {
            if let Some(seen) = self.ready.pop_front() {
                return Some(seen);
            }
            tokio::select! {
                change = self.changes.next() => self.take(change?),
                Some(seen) = self.watched.next() => return Some(seen),
            }
        }
    }

    fn take(&mut self, change: watcher::Result<Event<CustomResourceDefinition>>) {
        match change {
            Ok(Event::Init) => self.definitions.clear(),
            Ok(Event::InitApply(definition)) => self.put(&definition),
            Ok(Event::InitDone) => self.settle(),
            Ok(Event::Apply(definition)) => {
                self.put(&definition);
                self.settle();
            }
            Ok(Event::Delete(definition)) => {
                self.definitions.remove(definition.metadata.name.as_deref().unwrap_or(""));
                self.settle();
            }
            Err(error) => tracing::debug!(%error, "the watch of CRDs failed; it is tried again"),
        }
    }

    fn put(&mut self, definition: &CustomResourceDefinition) {
        let mut object = serde_json::to_value(definition).expect("typed objects are JSON");
        // Rows and paths follow from names alone; schemas are large.
        for version in object["spec"]["versions"].as_array_mut().into_iter().flatten() {
            version.as_object_mut().map(|version| version.shift_remove("schema"));
        }
        self.definitions.insert(definition.metadata.name.clone().unwrap_or_default(), object);
    }

    /// Begins and ends watches so that each kind has one.
    fn settle(&mut self) {
        let all: Vec<Value> = self.definitions.values().cloned().collect();
        let mut wanted: HashMap<(&str, &str), &'static Kind> = HashMap::new();
        // One that cannot be compiled, by a bug, is not served either: the API server says so.
        let compile =
            |crd: &Value, version: &Value| contain::sync(|| Definition::new(crd, version)).ok();
        for row in self.rows.update(&all, compile) {
            let stored = row.custom().is_some_and(|custom| custom.storage_version == row.version);
            let place = wanted.entry((row.group, row.plural)).or_insert(row);
            if stored {
                *place = row;
            }
        }
        let address = |kind: &'static Kind| std::ptr::from_ref(kind) as usize;
        let kept: HashSet<usize> = wanted.values().map(|kind| address(kind)).collect();
        let ended: Vec<usize> =
            self.stops.keys().filter(|address| !kept.contains(address)).copied().collect();
        for address in ended {
            if let Some((kind, stop)) = self.stops.remove(&address) {
                // The watch ends with its sender; an empty list says that nothing is left.
                drop(stop);
                self.ready.extend([(kind, Seen::Begin), (kind, Seen::End)]);
            }
        }
        for kind in wanted.into_values() {
            if let Entry::Vacant(place) = self.stops.entry(address(kind)) {
                let (stop, stopped) = oneshot::channel::<()>();
                place.insert((kind, stop));
                let stopped = async move {
                    let _ = stopped.await;
                };
                let objects = match gateway::kind_of(kind) {
                    Some(of) => gateways(&self.client, kind, of),
                    None => bare(&self.client, kind),
                };
                self.watched.push(objects.take_until(stopped.boxed()).boxed());
            }
        }
    }
}

fn seen<T: Send + 'static>(
    kind: &'static Kind,
    events: impl Stream<Item = watcher::Result<Event<T>>> + Send + 'static,
    hold: impl Fn(T) -> Object + Send + 'static,
) -> BoxStream<'static, Watched> {
    // One that cannot be held, by a bug, is as if nothing had been said of it.
    let hold = move |object| match contain::sync(|| hold(object)) {
        Ok(object) => Some(object),
        Err(panic) => {
            tracing::error!(kind = kind.plural, %panic, "an object was left out");
            None
        }
    };
    let events = events.backoff(Pause::default());
    let seen = events.filter_map(move |event| {
        let seen = match event {
            Ok(Event::Init) => Some(Seen::Begin),
            Ok(Event::InitApply(object)) => hold(object).map(Seen::Listed),
            Ok(Event::InitDone) => Some(Seen::End),
            Ok(Event::Apply(object)) => hold(object).map(Seen::Put),
            Ok(Event::Delete(object)) => hold(object).map(Seen::Gone),
            Err(error) => {
                tracing::debug!(kind = kind.plural, %error, "watch failed; it is tried again");
                None
            }
        };
        std::future::ready(seen.map(|seen| (kind, seen)))
    });
    seen.boxed()
}
