//! Several members in one process: joining, losing, forwarding, disagreeing.

use std::collections::BTreeSet;

use super::net::*;
use super::*;
use crate::errors::MembershipError;
use crate::faults::{Bug, Fault};
use crate::members::{MemberStatus, Role};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_of_one_three_and_five_serve_from_every_member() {
    for size in [1, 3, 5] {
        let net = Net::default();
        let stores = net.cluster(size).await;
        for (number, store) in stores.iter().enumerate() {
            let key = format!("from/{number}");
            let entry = put(store, &key, "value").await;
            assert_eq!(store.current().get(key.as_bytes()), Some(entry.clone()), "its own write");
            for other in &stores {
                let read = other.read().await.expect("any member reads");
                assert_eq!(read.get(key.as_bytes()), Some(entry.clone()));
            }
        }
        let at = Precondition::At(1);
        let refused = stores[size - 1].put(bytes("from/0"), bytes("x"), at).await;
        assert!(matches!(refused, Err(WriteError::Conflict { current: Some(_) })), "{refused:?}");
        let (_, last) = stores[size - 1]
            .delete(bytes("from/0"), Precondition::Present)
            .await
            .expect("any member deletes");
        assert_eq!(last.value, "value");
        agree(&stores.iter().collect::<Vec<_>>()).await;
        eventually("all serve", async || stores.iter().all(|s| s.health().serving)).await;

        let members = stores[size - 1].members().await;
        assert_eq!(members.len(), size);
        let roles = |role| members.iter().filter(|member| member.role == role).count();
        assert_eq!((roles(Role::Leader), roles(Role::Voter)), (1, size - 1));
        assert!(members.iter().all(|member: &MemberStatus| member.applied.is_some()));
        end(stores).await;
    }
}

/// A member whose log was purged before it came needs the whole state.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_member_catches_up_by_a_snapshot() {
    let net = Net::default();
    let first = net.found().await;
    for number in 0..50 {
        put(&first, &format!("before/{number}"), "value").await;
    }
    purge(&first).await;
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let engine = Engine::Rocks(folder.path().to_owned());
    let second = net.join(&first, engine, &Faults::default()).await;
    agree(&[&first, &second]).await;
    assert!(folder.path().join("db-2").exists(), "the snapshot came into a folder of its own");
    assert!(!folder.path().join("db-1").exists());
    let (id, cluster_id) = (second.member_id(), second.cluster_id());
    net.kill(&second).await;

    // It comes back under its old data and goes on.
    let config = net.config(id, Engine::Rocks(folder.path().to_owned()), &Faults::default());
    let second = Store::join(config, net.transport(id)).await.expect("it goes on");
    assert_eq!(second.cluster_id(), cluster_id);
    net.plug(&second);
    put(&first, "after", "value").await;
    agree(&[&first, &second]).await;
    end([first, second]).await;
}

/// Takes a snapshot and purges the log up to it.
async fn purge(store: &Store) {
    let raft = &store.inner.member.raft;
    raft.trigger().snapshot().await.expect("it runs");
    let all = store.current().revision();
    let wait = raft.wait(Some(HANG));
    let taken = wait.metrics(|m| m.snapshot.is_some_and(|id| id.index >= all), "snapshot").await;
    taken.expect("the snapshot is taken");
    raft.trigger().purge_log(all).await.expect("it runs");
    let wait = raft.wait(Some(HANG));
    let purged = wait.metrics(|m| m.purged.is_some_and(|id| id.index >= all), "purge").await;
    purged.expect("the log is purged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_outlive_their_leader_and_take_it_back() {
    let net = Net::default();
    let stores = net.cluster(3).await;
    put(&stores[1], "before", "value").await;
    let all: Vec<&Store> = stores.iter().collect();
    net.isolate(stores[0].member_id(), &all);
    // Whoever waits for a leader gets one.
    let rest = [&stores[1], &stores[2]];
    eventually("writes go on", async || {
        rest[0].put(bytes("later"), bytes("value"), Precondition::Any).await.is_ok()
    })
    .await;
    assert!(!std::ptr::eq(leader(&rest).await, &stores[0]));
    assert_eq!(
        rest[1].read().await.expect("reads go on").get(b"later").map(|e| e.value),
        Some(bytes("value"))
    );
    net.heal();
    agree(&all).await;
    assert!(stores[0].current().get(b"later").is_some());
    end(stores).await;
}

/// Where every fsync takes longer than an election waits, somebody comes to lead all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_disks_elect_a_leader() {
    let net = Net::default();
    let first = net.found().await;
    let mut rest = Vec::new();
    for _ in 0..2 {
        let faults = Faults::default();
        rest.push((net.join(&first, Engine::Memory, &faults).await, faults));
    }
    for (_, faults) in &rest {
        faults.set("writer.sync", Fault::Delay(450), None);
    }
    net.kill(&first).await;
    let survivors = [&rest[0].0, &rest[1].0];
    let led = leader(&survivors);
    tokio::time::timeout(HANG, led).await.expect("votes may take their time");
    for (_, faults) in &rest {
        faults.clear();
    }
    end(rest.into_iter().map(|(store, _)| store)).await;
}

/// Neither a leader nor a follower without a majority keeps anybody waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_answers_within_two_seconds() {
    let net = Net::default();
    let stores = net.cluster(3).await;
    let all: Vec<&Store> = stores.iter().collect();
    for store in &stores {
        net.isolate(store.member_id(), &all);
    }
    for _ in 0..3 {
        for store in &stores {
            in_two_seconds("a write", async || {
                let write = store.put(bytes("key"), bytes("value"), Precondition::Any).await;
                let refused =
                    matches!(write, Err(WriteError::NotLeader { .. } | WriteError::Unknown));
                assert!(refused, "{write:?}");
            })
            .await;
            in_two_seconds("a read", async || {
                let read = store.read().await;
                assert!(matches!(read, Err(ReadError::NotLeader { .. } | ReadError::NoMajority)));
            })
            .await;
        }
    }
    assert!(stores.iter().all(|store| !store.health().serving), "and they say so");
    net.heal();
    eventually("they serve again", async || {
        stores[2].put(bytes("key"), bytes("value"), Precondition::Any).await.is_ok()
    })
    .await;
    end(stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_data_comes_back_under_a_new_id() {
    let net = Net::default();
    let mut stores = net.cluster(3).await;
    let lost = stores.pop().expect("there are three");
    let id = lost.member_id();
    net.kill(&lost).await;
    let (name, address) = (format!("member-{id}"), format!("address-{id}"));
    let taken = stores[1].add_learner(&name, "elsewhere").await;
    assert_eq!(taken, Err(MembershipError::Taken { id, name, address }));
    stores[1].remove(id).await.expect("the others decide");
    // A member that does not lead hears of it a little later.
    eventually("two are left", async || stores[1].members().await.len() == 2).await;
    let again = net.join(&stores[1], Engine::Memory, &Faults::default()).await;
    assert!(again.member_id() > id, "ids are never given twice");
    stores.push(again);
    put(&stores[2], "key", "value").await;
    agree(&stores.iter().collect::<Vec<_>>()).await;
    let unknown = stores[0].remove(id).await;
    assert_eq!(unknown, Err(MembershipError::NoSuchMember { id }));

    // One that runs on after it was removed finds out.
    let gone = stores.pop().expect("there are three");
    stores[0].remove(gone.member_id()).await.expect("the others decide");
    let removed = |reason: String| reason.contains("was removed from the cluster");
    eventually("it knows", async || gone.health().reason.is_some_and(removed)).await;
    end(stores).await;
    end([gone]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_goes_where_it_is_sent_and_before_a_planned_stop() {
    let net = Net::default();
    let stores = net.cluster(3).await;
    let third = stores[2].member_id();
    assert_eq!(stores[1].transfer(Some(third)).await, Ok(third));
    eventually("it leads", async || leads(&stores[2])).await;
    put(&stores[0], "key", "value").await;
    let nobody = stores[1].transfer(Some(999)).await;
    assert_eq!(nobody, Err(MembershipError::NoSuchMember { id: 999 }));

    // The leader removes itself: another one leads, and takes the change on.
    stores[0].remove(third).await.expect("it goes");
    let rest = [&stores[0], &stores[1]];
    let first = leader(&rest).await.clone();
    put(&first, "key", "later").await;
    first.shutdown().await.expect("it stops");
    net.unplug(first.member_id());
    let other = rest.into_iter().find(|store| store.member_id() != first.member_id());
    let other = other.expect("there were two");
    // Alone it could not be elected: the lead was handed to it before the other one stopped.
    eventually("it leads", async || leads(other)).await;
    end(stores).await;
}

/// A member that comes back at another address is found there, whoever leads.
/// One question tells a new leader that the old one has all of the log: nothing of it is sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_sends_the_old_one_nothing_that_it_has() {
    if cfg!(debug_assertions) {
        return;
    }
    let net = Net::default();
    let stores = net.cluster(3).await;
    for number in 0..50 {
        put(&stores[0], &format!("{number}"), "value").await;
    }
    let all: Vec<&Store> = stores.iter().collect();
    agree(&all).await;
    let old = leader(&all).await.member_id();
    let next = stores.iter().map(Store::member_id).find(|id| *id != old).expect("there are three");
    let newest = stores[0].current().revision();
    net.lock().sent = Some(Vec::new());
    assert_eq!(stores[0].transfer(Some(next)).await, Ok(next));
    put(&stores[0], "later", "value").await;
    agree(&all).await;
    let sent = net.lock().sent.take().expect("it was asked for");
    let to_old: Vec<u64> = sent
        .iter()
        .filter(|(from, to, _)| (*from, *to) == (next, old))
        .map(|sent| sent.2)
        .collect();
    assert!(to_old.iter().all(|index| *index > newest), "{newest} was there: {to_old:?}");
    end(stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_says_where_it_is() {
    let net = Net::default();
    let stores = net.cluster(3).await;
    let all: Vec<&Store> = stores.iter().collect();
    for (number, store) in stores.iter().enumerate() {
        let (id, address) = (store.member_id(), format!("elsewhere-{number}"));
        net.unplug(id);
        net.lock().stores.insert(address.clone(), store.clone());
        let name = format!("member-{id}");
        eventually("its entry follows", async || store.settle_at(&name, &address).await.is_ok())
            .await;
        put(store, "key", &address).await;
        agree(&all).await;
        let members = stores[(number + 1) % 3].members().await;
        let moved = members.iter().find(|member| member.id == id).expect("it is a member");
        assert_eq!((moved.address.as_str(), moved.applied.is_some()), (address.as_str(), true));
    }
    let taken = stores[0].settle_at("member-1", "elsewhere-1").await;
    assert!(matches!(taken, Err(MembershipError::Taken { .. })), "{taken:?}");
    end(stores).await;
}

/// A write whose answer is lost may have happened, and the caller is told just that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_unknown() {
    let net = Net::default();
    let stores = net.cluster(3).await;
    let follower = stores[1].member_id();
    net.lock().deaf.insert(follower);
    let write = stores[1].put(bytes("key"), bytes("value"), Precondition::Absent).await;
    assert_eq!(write, Err(WriteError::Unknown));
    net.lock().deaf.clear();
    eventually("it did happen", async || stores[0].current().get(b"key").is_some()).await;
    let again = stores[1].put(bytes("key"), bytes("value"), Precondition::Absent).await;
    assert!(matches!(again, Err(WriteError::Conflict { current: Some(_) })), "{again:?}");
    end(stores).await;
}

/// The next leader's first entry tells what became of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_found_out_when_another_one_leads() {
    let net = Net::default();
    let stores = net.cluster(3).await;
    let (follower, third) = (stores[1].member_id(), stores[2].member_id());
    net.lock().deaf.insert(follower);
    let writer = stores[1].clone();
    let write = tokio::spawn(async move {
        writer.put(bytes("key"), bytes("value"), Precondition::Absent).await
    });
    eventually("it happens", async || stores[0].current().get(b"key").is_some()).await;
    assert_eq!(stores[0].transfer(Some(third)).await, Ok(third));
    let write = write.await.expect("it does not panic");
    net.lock().deaf.clear();
    let stored = stores[0].current().get(b"key");
    assert_eq!(write.ok(), stored, "it is told as it was done");
    agree(&stores.iter().collect::<Vec<_>>()).await;
    end(stores).await;
}

/// Two that count from the same revision write the same bytes, and only one of them has counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_bytes_of_two_writers_are_one_write() {
    let net = Net::default();
    let stores = net.cluster(3).await;
    put(&stores[0], "key", "1").await;
    agree(&stores.iter().collect::<Vec<_>>()).await;
    let at = stores[1].current().get(b"key").expect("it was put").modified;
    let (follower, third) = (stores[1].member_id(), stores[2].member_id());
    net.lock().deaf.insert(follower);
    let writer = stores[1].clone();
    let writes = tokio::spawn(async move {
        // Both begin before either is applied.
        let count = || writer.put(bytes("key"), bytes("2"), Precondition::At(at));
        tokio::join!(count(), count())
    });
    eventually("one of them counts", async || {
        stores[0].current().get(b"key").is_some_and(|entry| entry.modified > at)
    })
    .await;
    assert_eq!(stores[0].transfer(Some(third)).await, Ok(third));
    let (one, other) = writes.await.expect("they do not panic");
    net.lock().deaf.clear();
    assert!(one.is_err() || other.is_err(), "both were told so: {one:?}, {other:?}");
    agree(&stores.iter().collect::<Vec<_>>()).await;
    end(stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_acts_as_leader_is_not_forwarded() {
    let net = Net::default();
    let stores = net.cluster(3).await;
    let all: Vec<&Store> = stores.iter().collect();
    // Between the two looks another one may have come to lead.
    eventually("who leads may write, and the others are told who", async || {
        let led = leader(&all).await;
        let other = all.iter().copied().find(|store| !std::ptr::eq(*store, led));
        let other = other.expect("there are three");
        let put = async |store: &Store| {
            store.leading().put(bytes("key"), bytes("value"), Precondition::Any).await
        };
        let (id, refused) = (led.member_id(), put(other).await);
        let told =
            matches!(refused, Err(WriteError::NotLeader { leader: Some(it), .. }) if it == id);
        told && put(led).await.is_ok()
    })
    .await;
    end(stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_of_another_cluster_or_name_are_refused() {
    let net = Net::default();
    let stores = net.cluster(3).await;
    let other = Net::default().found().await;
    let peer = |id| Peer { id, address: "address-1".to_owned() };
    let status = crate::wire::Request::Status;
    let ask = async |caller: &Caller, id| {
        caller.ask(peer(id), &status, Duration::from_secs(1)).await.err().map(|e| e.to_string())
    };
    let foreign = Caller::new(other.inner.identity, net.transport(FOUNDER), Faults::default());
    let refused = ask(&foreign, 1).await.expect("it is refused");
    assert!(refused.contains("of cluster"), "{refused}");
    // The certificate says 1, the request says somebody else.
    let liar = Identity { member_id: 77, ..stores[0].inner.identity };
    let liar = Caller::new(liar, net.transport(FOUNDER), Faults::default());
    let refused = ask(&liar, 1).await.expect("it is refused");
    assert!(refused.contains("says that it is member 77"), "{refused}");
    let lost = Caller::new(stores[0].inner.identity, net.transport(FOUNDER), Faults::default());
    let refused = ask(&lost, 3).await.expect("it is refused");
    assert!(refused.contains("looks for member 3"), "{refused}");
    assert_eq!(ask(&lost, 1).await, None);
    end(stores).await;
    end([other]).await;
}

/// A member that applies something else than the others is found and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_differs_is_quarantined() {
    let net = Net::default();
    let mut stores = net.cluster(2).await;
    let faults = Faults::default();
    stores.push(net.join(&stores[0].clone(), Engine::Memory, &faults).await);
    faults.set("machine.corrupt", Fault::Error, Some(1));
    put(&stores[0], "key", "value").await;
    let odd = &stores[2];
    eventually("it is found", async || odd.health().quarantined.is_some()).await;
    let health = odd.health();
    assert!(!health.serving && health.reason.is_some_and(|r| r.contains("quarantined")));
    assert_eq!(odd.read().await.err(), Some(ReadError::Quarantined));
    let members = stores[0].members().await;
    let bad: Vec<MemberId> =
        members.iter().filter(|m| m.quarantined.is_some()).map(|m| m.id).collect();
    assert_eq!(bad, [odd.member_id()]);
    assert!(stores[0].health().quarantined.is_none());
    end(stores).await;
}

/// The leader may be the odd one. It then lets another one lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_differs_hands_over() {
    let net = Net::default();
    let faults = Faults::default();
    let first = net.found_with(Engine::Memory, &faults).await;
    let second = net.join(&first, Engine::Memory, &Faults::default()).await;
    faults.set("machine.corrupt", Fault::Error, Some(1));
    put(&second, "key", "value").await;
    eventually("the two see it", async || first.health().suspicion.is_some()).await;
    assert!(first.health().quarantined.is_none(), "neither of two is right");

    let third = net.join(&first, Engine::Memory, &Faults::default()).await;
    // The third one got the leader's log, not its state, and sides with the second.
    put(&third, "other", "value").await;
    eventually("it is found", async || first.health().quarantined.is_some()).await;
    let rest = [&second, &third];
    let next = leader(&rest).await;
    let value = next.read().await.expect("it serves").get(b"key").map(|entry| entry.value);
    assert_eq!(value, Some(bytes("value")));
    end([first, second, third]).await;
}

/// The steps of a member among others, those of snapshots, and those of a leader that sends one or
/// what it has logged long ago.
const POINTS_OF_A_MEMBER: [&str; 6] =
    ["log.vote", "log.truncate", "log.append", "peer.ask", "peer.answer", "members.change"];
const POINTS_OF_A_SNAPSHOT: [&str; 5] =
    ["snapshot.receive", "snapshot.stage", "snapshot.adopt", "snapshot.switch", "log.purge"];
const POINTS_OF_A_SENDER: [&str; 2] = ["snapshot.send", "log.read"];

#[test]
fn every_failpoint_is_failed_by_a_test() {
    let tried = super::tests::POINTS_OF_A_WRITE.into_iter().chain(POINTS_OF_A_MEMBER);
    let tried = tried.chain(POINTS_OF_A_SNAPSHOT).chain(POINTS_OF_A_SENDER);
    assert_eq!(tried.collect::<BTreeSet<_>>(), BTreeSet::from(crate::POINTS));
}

/// Every step of a member among others, failing in every way on one of three: nothing acknowledged
/// is lost, the others go on, and the one that failed has stopped or agrees with them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failpoint_of_a_member_leaves_the_others_alone() {
    for point in POINTS_OF_A_MEMBER {
        tokio::join!(
            one_of_three_fails(point, Fault::Panic),
            one_of_three_fails(point, Fault::Error),
            one_of_three_fails(point, Fault::Delay(20)),
        );
    }
}

async fn one_of_three_fails(point: &'static str, fault: Fault) {
    let net = Net::default();
    let faults = Faults::default();
    let mut stores = net.cluster(2).await;
    stores.push(net.join(&stores[0].clone(), Engine::Memory, &faults).await);
    let all: Vec<&Store> = stores.iter().collect();
    let id = stores[2].member_id();
    let before = faults.hits(point);
    let mut acknowledged = vec![put(&stores[1], "before", "value").await];
    faults.set(point, fault, Some(2));

    // It votes, leads, is asked to change the members, and writes what nobody else gets.
    let moved = stores[0].transfer(Some(id)).await;
    tracing::info!(point, ?fault, ?moved, "asked to lead");
    let odd = stores[2].clone();
    let _ = tokio::spawn(async move { odd.remove(999).await }).await;
    net.isolate(id, &all);
    let alone = async { stores[2].put(bytes("alone"), bytes("1"), Precondition::Any).await };
    let together = eventually("the others go on", async || {
        stores[0].put(bytes("together"), bytes("1"), Precondition::Any).await.is_ok()
    });
    let _ = tokio::join!(alone, together);
    net.heal();
    acknowledged.push(put(&stores[0], "after", "value").await);
    eventually("the point is reached", async || faults.hits(point) > before).await;
    for entry in &acknowledged {
        let found = contents(&stores[0]).into_values().any(|found| found == *entry);
        assert!(found, "{point} {fault:?} lost a write");
    }
    eventually("it stopped, or agrees", async || {
        let same = contents(&stores[2]) == contents(&stores[0]);
        stores[2].inner.stop.reason().is_some() || same
    })
    .await;
    for store in stores {
        let _ = store.end().await;
    }
}

/// A leader that fails while it sends a snapshot, or its log: it goes on, at the latest after a
/// restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_fails_to_send_arrives_later() {
    for point in POINTS_OF_A_SENDER {
        for fault in [Fault::Panic, Fault::Error, Fault::Delay(30)] {
            let net = Net::default();
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let engine = Engine::Rocks(folder.path().to_owned());
            let first = net.found_with(engine.clone(), &Faults::default()).await;
            for number in 0..30 {
                put(&first, &format!("{number}"), "value").await;
            }
            if point == "snapshot.send" {
                purge(&first).await;
            }
            // Started again it has nothing of its log in memory.
            net.kill(&first).await;
            let faults = Faults::default();
            let first = net.found_with(engine.clone(), &faults).await;
            let id = net.enroll(&first).await;
            let before = faults.hits(point);
            faults.set(point, fault, Some(1));
            let config = net.config(id, Engine::Memory, &Faults::default());
            let config = Config { cluster_id: Some(first.cluster_id()), ..config };
            let second = Store::join(config, net.transport(id)).await.expect("it opens");
            net.plug(&second);
            eventually("it is sent", async || faults.hits(point) > before).await;
            net.kill(&first).await;
            let first = net.found_with(engine, &Faults::default()).await;
            let voted = first.promote(id).await;
            voted.unwrap_or_else(|error| panic!("{point} {fault:?}: {error}"));
            agree(&[&first, &second]).await;
            end([first, second]).await;
        }
    }
}

/// A sender or receiver that fails in the middle of a snapshot: the old state stays, nothing half
/// of the new one counts, and the next attempt works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_fails_anywhere_leaves_nothing_half_installed() {
    for point in POINTS_OF_A_SNAPSHOT {
        for fault in [Fault::Panic, Fault::Error, Fault::Delay(30)] {
            let net = Net::default();
            let first = net.found().await;
            for number in 0..30 {
                put(&first, &format!("{number}"), "value").await;
            }
            purge(&first).await;
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let engine = Engine::Rocks(folder.path().to_owned());
            let faults = Faults::default();
            faults.set(point, fault, Some(1));
            let id = net.enroll(&first).await;
            let config = net.config(id, engine.clone(), &faults);
            let config = Config { cluster_id: Some(first.cluster_id()), ..config };
            let second = Store::join(config, net.transport(id)).await.expect("it opens");
            net.plug(&second);
            eventually("the point is reached", async || faults.hits(point) > 0).await;
            // Killed in the middle, whatever it was doing; a writer that panicked says so.
            net.unplug(id);
            let _ = second.end().await;

            let config = net.config(id, engine, &Faults::default());
            let again = Store::join(config, net.transport(id)).await;
            let second = again.unwrap_or_else(|error| panic!("{point} {fault:?}: {error}"));
            net.plug(&second);
            first.promote(id).await.unwrap_or_else(|e| panic!("{point} {fault:?}: {e}"));
            agree(&[&first, &second]).await;
            end([first, second]).await;
        }
    }
}

/// A read that has to ask again asks again: the seeded bug answers from before a write it must see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seeded_bug_of_read_indexes_is_found() {
    for seeded in [false, true] {
        let net = Net::default();
        let mut stores = net.cluster(2).await;
        let faults = Faults::default();
        stores.push(net.join(&stores[0].clone(), Engine::Memory, &faults).await);
        if seeded {
            faults.seed(Bug::ReadIndexReused);
        }
        let reader = &stores[2];
        reader.read().await.expect("it knows an index now");
        // The reader hears of no write any more, and its first question is lost.
        let all: Vec<&Store> = stores.iter().collect();
        net.lock().cut.insert((1, reader.member_id()));
        let entry = put(&stores[1], "key", "value").await;
        faults.set("peer.ask", Fault::Error, Some(1));
        let read = reader.read().await;
        let stale = read.as_ref().is_ok_and(|snapshot| snapshot.get(b"key") != Some(entry));
        assert_eq!(stale, seeded, "{:?}", read.err());
        net.heal();
        agree(&all).await;
        end(stores).await;
    }
}
