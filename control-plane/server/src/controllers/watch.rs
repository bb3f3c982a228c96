//! The watches that feed the cache: one a kind, kept up over errors, as one merged stream of what
//! was seen.

use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind, PartialObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event, watcher as watch};
use wherry_resources::Kind;

use super::cache::{Bare, Cache, Object, Seen, Typed, kind_row, trim};
use super::reconcile::Watched;
use super::serviceaccount::ROOT_CA;

/// First and longest pause before a watch that failed is tried again.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A pause that doubles.
pub struct Pause(Duration);

impl Pause {
    pub fn new() -> Pause {
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
        *self = Pause::new();
    }
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

/// Watches ConfigMaps, without their content but for the one that a controller owns.
pub fn config_maps(client: &kube::Client, cache: &mut Cache) -> BoxStream<'static, Watched> {
    cache.hold::<ConfigMap>();
    let events = watch(Api::<ConfigMap>::all(client.clone()), watcher::Config::default());
    seen(kind_row::<ConfigMap>(), events, |mut object| {
        trim(&mut object.metadata);
        if object.metadata.name.as_deref() != Some(ROOT_CA) {
            object.data = None;
        }
        object.binary_data = None;
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

fn seen<T: Send + 'static>(
    kind: &'static Kind,
    events: impl Stream<Item = watcher::Result<Event<T>>> + Send + 'static,
    hold: fn(T) -> Object,
) -> BoxStream<'static, Watched> {
    let events = events.backoff(Pause::new());
    let seen = events.filter_map(move |event| {
        let seen = match event {
            Ok(Event::Init) => Some(Seen::Begin),
            Ok(Event::InitApply(object)) => Some(Seen::Listed(hold(object))),
            Ok(Event::InitDone) => Some(Seen::End),
            Ok(Event::Apply(object)) => Some(Seen::Put(hold(object))),
            Ok(Event::Delete(object)) => Some(Seen::Gone(hold(object))),
            Err(error) => {
                tracing::debug!(kind = kind.plural, %error, "watch failed; it is tried again");
                None
            }
        };
        std::future::ready(seen.map(|seen| (kind, seen)))
    });
    seen.boxed()
}
