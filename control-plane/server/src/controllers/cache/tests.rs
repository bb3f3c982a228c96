//! What the cache holds after watches and own writes, in whatever order they come.

use k8s_openapi::api::core::v1::{Service, ServiceSpec};

use super::super::testing::{meta, object};
use super::labels::Labels;
use super::*;

fn pod(name: &str, revision: u64, owner: &str) -> Pod {
    let mut pod: Pod = object(meta("default", name));
    pod.metadata.resource_version = Some(revision.to_string());
    pod.metadata.uid = Some(format!("uid-{name}"));
    if !owner.is_empty() {
        pod.metadata.owner_references = Some(vec![super::super::testing::owner(owner)]);
    }
    pod
}

fn cache() -> Cache {
    let mut cache = Cache::new();
    cache.hold::<Pod>();
    cache
}

fn put(cache: &mut Cache, pod: Pod) -> usize {
    cache.observe(kind_row::<Pod>(), Seen::Put(Object::new(pod)), Instant::now()).len()
}

#[test]
fn an_object_never_goes_back() {
    let mut cache = cache();
    assert_eq!(put(&mut cache, pod("a", 5, "")), 1);
    assert_eq!(put(&mut cache, pod("a", 4, "")), 0, "older");
    assert_eq!(put(&mut cache, pod("a", 5, "")), 0, "the same");
    assert_eq!(put(&mut cache, pod("a", 6, "")), 1);
    assert_eq!(cache.revision(), 6);
}

#[test]
fn what_an_own_write_removed_stays_removed_until_the_watch_has_said_so() {
    let mut cache = cache();
    put(&mut cache, pod("a", 5, ""));
    assert!(cache.removed(&Key::of::<Pod>("default", "a"), "uid-a").is_some());
    assert_eq!(put(&mut cache, pod("a", 6, "")), 0, "a late event from before the removal");
    let gone = Seen::Gone(Object::new(pod("a", 7, "")));
    assert!(cache.observe(kind_row::<Pod>(), gone, Instant::now()).is_empty());
    let mut next = pod("a", 8, "");
    next.metadata.uid = Some("uid-next".to_string());
    assert_eq!(put(&mut cache, next), 1, "another object of the same name");
}

#[test]
fn a_late_answer_does_not_bring_back_what_is_gone() {
    let mut cache = cache();
    let json = serde_json::to_value(pod("a", 5, "")).expect("JSON");
    put(&mut cache, pod("a", 5, ""));
    let gone = Seen::Gone(Object::new(pod("a", 6, "")));
    cache.observe(kind_row::<Pod>(), gone, Instant::now());
    assert!(cache.wrote(kind_row::<Pod>(), json, Instant::now()).is_none());
    assert!(cache.get::<Pod>("default", "a").is_none());
}

#[test]
fn owners_strays_and_namespaces_are_indexed() {
    let mut cache = cache();
    put(&mut cache, pod("a", 1, "set"));
    put(&mut cache, pod("b", 2, ""));
    assert_eq!(cache.controlled::<Pod>("uid-set").len(), 1);
    assert_eq!(cache.strays::<Pod>("default").len(), 1);
    put(&mut cache, pod("b", 3, "set"));
    assert_eq!(cache.controlled::<Pod>("uid-set").len(), 2);
    assert!(cache.strays::<Pod>("default").is_empty());
    for revision in [4, 5] {
        let mut bound = pod("b", revision, "set");
        bound.spec.get_or_insert_default().node_name = Some("n".to_string());
        put(&mut cache, bound);
        assert_eq!((cache.count_on("n"), cache.controlled::<Pod>("uid-set").len()), (1, 2));
    }
    assert_eq!(cache.within::<Pod>("default").count(), 2);
    assert_eq!(cache.within::<Pod>("defaul").count(), 0);
    assert_eq!(cache.contents("default")[0].1.len(), 2);
}

#[test]
fn pods_and_services_find_each_other_by_labels() {
    let mut cache = cache();
    cache.hold::<Service>();
    let labels = |text: &str| -> Labels {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    let labelled = |name: &str, revision: u64, text: &str| Pod {
        metadata: ObjectMeta { labels: Some(labels(text)), ..pod(name, revision, "").metadata },
        ..Pod::default()
    };
    let found = |cache: &Cache, selector: &str| {
        let pods = cache.selected("default", &labels(selector));
        let names = pods.iter().filter_map(|pod| pod.metadata.name.clone());
        names.collect::<Vec<String>>().join(" ")
    };
    put(&mut cache, labelled("b", 1, "app=web,tier=front"));
    put(&mut cache, labelled("a", 2, "app=web,tier=back"));
    assert_eq!(found(&cache, "app=web"), "a b");
    assert_eq!(found(&cache, "app=web,tier=back"), "a");
    assert_eq!(found(&cache, "app=web,tier=side"), "");
    let mut service: Service = object(meta("default", "web"));
    let selector = Some(labels("app=web,tier=back"));
    service.spec = Some(ServiceSpec { selector, ..ServiceSpec::default() });
    cache.observe(kind_row::<Service>(), Seen::Put(Object::new(service)), Instant::now());
    let selecting = |cache: &Cache, text: &str| {
        let keys = cache.selecting("default", Some(&labels(text)));
        keys.iter().map(ToString::to_string).collect::<Vec<String>>().join(" ")
    };
    assert_eq!(selecting(&cache, "app=web,tier=back"), "services default/web");
    assert_eq!(selecting(&cache, "app=web,tier=front"), "");
    put(&mut cache, labelled("a", 3, "app=shop"));
    assert_eq!((found(&cache, "app=web"), found(&cache, "app=shop")), ("b".into(), "a".into()));
    let gone = Seen::Gone(Object::new(labelled("b", 4, "")));
    cache.observe(kind_row::<Pod>(), gone, Instant::now());
    assert_eq!(found(&cache, "app=web"), "");
}

#[test]
fn a_full_list_removes_what_it_lacks() {
    let mut cache = cache();
    put(&mut cache, pod("a", 1, ""));
    put(&mut cache, pod("b", 2, ""));
    let kind = kind_row::<Pod>();
    let now = Instant::now();
    cache.observe(kind, Seen::Begin, now);
    cache.observe(kind, Seen::Listed(Object::new(pod("b", 2, ""))), now);
    let changes = cache.observe(kind, Seen::End, now);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].key.name(), "a");
}

#[test]
fn a_pause_of_this_process_is_no_silence() {
    let mut cache = Cache::new();
    cache.hold::<Lease>();
    let begin = Instant::now();
    let at = |seconds| begin + Duration::from_secs(seconds);
    let renew = |cache: &mut Cache, node: &str, revision: u64, now: Instant| {
        let mut lease: Lease = object(meta(LEASE_NAMESPACE, node));
        lease.metadata.resource_version = Some(revision.to_string());
        cache.observe(kind_row::<Lease>(), Seen::Put(Object::new(lease)), now);
    };
    renew(&mut cache, "lost", 1, at(0));
    renew(&mut cache, "well", 2, at(3));
    // It stands still from 4 to 64; what was sent meanwhile is taken in before it looks.
    renew(&mut cache, "quick", 3, at(64));
    cache.stood_still(Duration::from_secs(60), at(64));
    let silent = |node: &str, now| cache.silent_for(node, at(now)).map(|time| time.as_secs());
    assert_eq!(
        [silent("lost", 64), silent("well", 64), silent("quick", 64)],
        [Some(4), Some(1), Some(0)]
    );
    assert_eq!(
        [silent("lost", 65), silent("well", 65), silent("quick", 65)],
        [Some(5), Some(2), Some(1)]
    );
}

#[test]
fn what_many_ask_is_counted_once_in_a_while() {
    let cache = Cache::new();
    let begin = Instant::now();
    let asked = std::cell::Cell::new(0);
    let ask = |ms: u64| {
        let count = || {
            asked.set(asked.get() + 1);
            asked.get()
        };
        *cache.counted(begin + Duration::from_millis(ms), Duration::from_millis(100), count)
    };
    assert_eq!([ask(50), ask(50), ask(150), ask(151), ask(151)], [1, 1, 1, 2, 2]);
    assert_eq!(ask(0), 3, "the clock was set anew");
}
