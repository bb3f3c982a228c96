//! Turns between flows and levels, with requests as numbers; and the whole with a real clock.

use super::*;
use crate::apiserver::follow::Fold as _;
use bytes::Bytes;
use serde_json::{Value, json};
use std::task::Poll;
use wherry_resources::keys::Key;
use wherry_store::Entry;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";

fn put(flows: &mut Flows, plural: &str, name: &str, spec: Value) {
    let object = json!({"metadata": {"name": name, "uid": name}, "spec": spec});
    let entry = Entry { value: Bytes::from(object.to_string()), created: 1, modified: 1 };
    flows.put(&Key { group: GROUP, plural, namespace: "", name }, &entry);
}

/// Two levels of equal shares: `staff` and `bots`, by user.
fn flows(lendable: u32) -> Arc<Flows> {
    let mut flows = Flows::default();
    for level in ["staff", "bots"] {
        put(
            &mut flows,
            "prioritylevelconfigurations",
            level,
            json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 10,
                "lendablePercent": lendable, "limitResponse": {"type": "Queue",
                "queuing": {"queues": 8, "handSize": 2, "queueLengthLimit": 3}}}}),
        );
        let all = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"],
            "namespaces": ["*"], "clusterScope": true}]);
        put(
            &mut flows,
            "flowschemas",
            level,
            json!({"matchingPrecedence": 10, "distinguisherMethod": {"type": "ByUser"},
                "priorityLevelConfiguration": {"name": level},
                "rules": [{"subjects": [{"kind": "Group", "group": {"name": level}}],
                    "resourceRules": all}]}),
        );
    }
    Arc::new(flows)
}

fn pods() -> Attributes {
    Attributes {
        verb: "list".to_owned(),
        is_resource: true,
        resource: "pods".to_owned(),
        ..Attributes::default()
    }
}

#[test]
fn a_request_falls_under_the_first_schema_that_fits() {
    let mut flows = (*flows(0)).clone();
    let probes = json!([{"verbs": ["get"], "nonResourceURLs": ["/livez", "/healthz/*"]}]);
    put(&mut flows, "prioritylevelconfigurations", "exempt", json!({"type": "Exempt"}));
    put(
        &mut flows,
        "flowschemas",
        "probes",
        json!({"matchingPrecedence": 1, "priorityLevelConfiguration": {"name": "exempt"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": "*"}}],
                "nonResourceRules": probes}]}),
    );
    let user = User::new("ann", &["staff"]);
    let level =
        |asked: &Attributes| flows.classify(&user, asked).map(|found| found.level.to_owned());
    assert_eq!(level(&pods()).as_deref(), Some("staff"));
    let path = |path: &str| Attributes {
        verb: "get".to_owned(),
        path: path.to_owned(),
        ..Attributes::default()
    };
    assert_eq!(level(&path("/livez")).as_deref(), Some("exempt"));
    assert_eq!(level(&path("/healthz/ping")).as_deref(), Some("exempt"));
    assert_eq!(level(&path("/metrics")), None);
    let ann = flows.classify(&user, &pods()).expect("found").flow;
    let bob = flows.classify(&User::new("bob", &["staff"]), &pods()).expect("found").flow;
    assert_ne!(ann, bob);
}

const LOUD: u64 = 1;

/// A flow that shares no queue with the loud one.
fn quiet<W>(levels: &Levels<W>) -> u64 {
    let loud = levels.cards_of("staff", LOUD);
    let apart = |flow: &u64| levels.cards_of("staff", *flow).is_disjoint(&loud);
    (2..100).find(apart).expect("there are eight queues")
}

fn runs(arrival: Arrival) -> Ticket {
    match arrival {
        Arrival::Runs(ticket) => ticket,
        Arrival::Waits => panic!("waits"),
        Arrival::Refused => panic!("refused"),
    }
}

#[test]
fn a_quiet_flow_does_not_wait_behind_a_loud_one() {
    let mut levels: Levels<&str> = Levels::new(4, |_| false);
    levels.configure(&flows(0));
    let mut running = Vec::new();
    for _ in 0..2 {
        running.push(runs(levels.arrive("staff", LOUD, 1, "loud")));
    }
    for _ in 0..3 {
        assert!(matches!(levels.arrive("staff", LOUD, 1, "loud"), Arrival::Waits));
    }
    let quiet = quiet(&levels);
    assert!(matches!(levels.arrive("staff", quiet, 1, "quiet"), Arrival::Waits));
    let begun = levels.finish(running[0], Duration::from_millis(10));
    assert_eq!(begun.len(), 1);
    assert_eq!(begun[0].0, "quiet");
}

#[test]
fn a_level_keeps_its_own_and_borrows_what_others_lend() {
    let mut own: Levels<u32> = Levels::new(4, |_| false);
    own.configure(&flows(0));
    for _ in 0..2 {
        runs(own.arrive("bots", LOUD, 1, 0));
    }
    assert!(matches!(own.arrive("bots", LOUD, 1, 0), Arrival::Waits));
    runs(own.arrive("staff", LOUD, 1, 0));
    let mut lent: Levels<u32> = Levels::new(4, |_| false);
    lent.configure(&flows(50));
    for _ in 0..3 {
        runs(lent.arrive("bots", LOUD, 1, 0));
    }
    assert!(matches!(lent.arrive("bots", LOUD, 1, 0), Arrival::Waits));
    runs(lent.arrive("staff", LOUD, 1, 0));
}

#[test]
fn a_full_queue_refuses_and_a_wide_request_is_cut_to_the_level() {
    let mut levels: Levels<u32> = Levels::new(4, |_| false);
    levels.configure(&flows(0));
    let wide = runs(levels.arrive("staff", LOUD, 16, 0));
    let waits = (0..10)
        .map(|_| levels.arrive("staff", LOUD, 16, 0))
        .filter(|arrival| matches!(arrival, Arrival::Waits))
        .count();
    assert_eq!(waits, 3 * levels.cards_of("staff", LOUD).len());
    assert!(matches!(levels.arrive("staff", LOUD, 1, 0), Arrival::Refused));
    assert_eq!(levels.finish(wide, Duration::from_millis(1)).len(), 1);
}

#[test]
fn who_has_gone_makes_room_in_a_full_queue() {
    let mut levels: Levels<&str> = Levels::new(4, |waiter| *waiter == "gone");
    levels.configure(&flows(0));
    for _ in 0..2 {
        runs(levels.arrive("staff", LOUD, 1, "runs"));
    }
    for _ in 0..3 * levels.cards_of("staff", LOUD).len() {
        assert!(matches!(levels.arrive("staff", LOUD, 1, "gone"), Arrival::Waits));
    }
    assert!(matches!(levels.arrive("staff", LOUD, 1, "waits"), Arrival::Waits));
}

#[tokio::test]
async fn who_finds_no_room_is_told_why() {
    let fairness = Fairness::new();
    let flows = flows(0);
    let user = User::new("ann", &["staff"]);
    let asked = Attributes { verb: "get".to_owned(), ..pods() };
    let (mut held, mut waiting) = (Vec::new(), Vec::new());
    let refused = loop {
        let mut passing = Box::pin(fairness.pass(&flows, &user, &asked));
        match futures::poll!(passing.as_mut()) {
            Poll::Ready(Ok(passed)) => held.push(passed),
            Poll::Ready(Err(refused)) => break refused,
            Poll::Pending => waiting.push(passing),
        }
    };
    assert_eq!(refused.class.level_uid, "staff");
    let said = refused.error().to_string();
    assert!(said.contains("priority level \"staff\" is busy"), "{said}");
    assert_eq!(fairness.refused(), [1, 0]);
}

#[tokio::test]
async fn seats_come_back_when_an_answer_is_done_or_given_up() {
    let fairness = Fairness::new();
    let flows = flows(0);
    let user = User::new("ann", &["staff"]);
    let asked = Attributes { verb: "get".to_owned(), ..pods() };
    let seats = fairness.levels().nominal_of(&flows, "staff");
    let mut held = Vec::new();
    for _ in 0..seats {
        held.push(fairness.pass(&flows, &user, &asked).await.expect("a seat"));
    }
    let waiting = fairness.pass(&flows, &user, &asked);
    tokio::pin!(waiting);
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    held.pop();
    assert!(waiting.await.expect("a seat").seat.is_some());
    // A waiter that has gone away does not keep the seat that comes to it.
    let gone = Box::pin(fairness.pass(&flows, &user, &asked));
    let held_again = fairness.pass(&flows, &user, &asked).await.expect("a seat");
    let mut gone = gone;
    assert!(futures::poll!(gone.as_mut()).is_pending());
    drop(gone);
    drop(held_again);
    assert!(fairness.pass(&flows, &user, &asked).await.expect("a seat").seat.is_some());
}

#[test]
fn watches_of_one_user_are_counted() {
    let fairness = Fairness::new();
    let user = User::new("ann", &["staff"]);
    let mut open: Vec<Option<WatchCount>> =
        (0..WATCHES_PER_USER_MAX).map(|_| fairness.watch(&user).expect("room")).collect();
    assert!(fairness.watch(&user).is_err());
    assert!(fairness.watch(&User::new("bob", &[])).is_ok());
    assert!(fairness.watch(&User::new("root", &["system:masters"])).expect("free").is_none());
    open.pop();
    assert!(fairness.watch(&user).is_ok());
}
