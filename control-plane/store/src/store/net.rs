//! Several members in one process, over a network made of function calls that can be cut, and what
//! tests ask of such members.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::*;
use crate::codec;
use crate::wire::Request;

/// Far longer than anything here takes; only a hang reaches it.
pub(super) const HANG: Duration = Duration::from_secs(180);

/// Members that reach each other within the process, by address.
#[derive(Clone, Default)]
pub(super) struct Net(Arc<Mutex<Wires>>);

#[derive(Default)]
pub(super) struct Wires {
    pub(super) stores: BTreeMap<String, Store>,
    /// Who cannot reach whom: requests hang, as they do when packets are dropped.
    pub(super) cut: BTreeSet<(MemberId, MemberId)>,
    /// Whose requests arrive, but the answers do not.
    pub(super) deaf: BTreeSet<MemberId>,
    /// Log entries that were sent: from whom, to whom, which. Noted while somebody asks.
    pub(super) sent: Option<Vec<(MemberId, MemberId, u64)>>,
}

impl Wires {
    fn note(&mut self, from: MemberId, to: MemberId, request: &[u8]) {
        if let Some(sent) = &mut self.sent
            && let Ok((_, Request::Append(append))) = codec::decode(request, Request::decode)
        {
            sent.extend(append.entries.iter().map(|entry| (from, to, entry.log_id.index)));
        }
    }
}

impl Net {
    pub(super) fn lock(&self) -> std::sync::MutexGuard<'_, Wires> {
        self.0.lock().expect("the test does not panic here")
    }

    pub(super) fn transport(&self, from: MemberId) -> Transport {
        let net = self.clone();
        Arc::new(move |peer: Peer, request: Bytes| {
            let net = net.clone();
            Box::pin(async move {
                let (store, cut) = {
                    let mut wires = net.lock();
                    wires.note(from, peer.id, &request);
                    let cut = wires.cut.contains(&(from, peer.id));
                    (wires.stores.get(&peer.address).cloned(), cut)
                };
                if cut {
                    std::future::pending::<()>().await;
                }
                let Some(store) = store else {
                    return Err(std::io::ErrorKind::ConnectionRefused.into());
                };
                // On a task of its own, as in another process: its panic is not the caller's.
                let answering = tokio::spawn(async move { store.handle_peer(from, request).await });
                let answer = answering.await.map_err(std::io::Error::other)?;
                if net.lock().deaf.contains(&from) {
                    return Err(std::io::ErrorKind::ConnectionReset.into());
                }
                let cut = net.lock().cut.contains(&(peer.id, from));
                if cut {
                    std::future::pending::<()>().await;
                }
                Ok(answer)
            })
        })
    }

    pub(super) fn config(&self, id: MemberId, engine: Engine, faults: &Faults) -> Config {
        let config = Config::new(engine, id, format!("address-{id}"));
        Config { name: format!("member-{id}"), faults: faults.clone(), ..config }
    }

    pub(super) async fn found(&self) -> Store {
        self.found_with(Engine::Memory, &Faults::default()).await
    }

    pub(super) async fn found_with(&self, engine: Engine, faults: &Faults) -> Store {
        let config = self.config(FOUNDER, engine, faults);
        let store = Store::open_with(config, self.transport(FOUNDER)).await.expect("it founds");
        self.plug(&store);
        store
    }

    pub(super) fn plug(&self, store: &Store) {
        let address = format!("address-{}", store.member_id());
        self.lock().stores.insert(address, store.clone());
    }

    pub(super) fn unplug(&self, id: MemberId) {
        self.lock().stores.remove(&format!("address-{id}"));
    }

    /// A process that ended without a word.
    pub(super) async fn kill(&self, store: &Store) {
        self.unplug(store.member_id());
        store.end().await.expect("its writer did not panic");
    }

    pub(super) fn isolate(&self, id: MemberId, among: &[&Store]) {
        let ids: Vec<MemberId> = among.iter().map(|store| store.member_id()).collect();
        self.isolate_id(id, &ids);
    }

    pub(super) fn isolate_id(&self, id: MemberId, among: &[MemberId]) {
        let mut wires = self.lock();
        for &other in among.iter().filter(|other| **other != id) {
            wires.cut.insert((id, other));
            wires.cut.insert((other, id));
        }
    }

    /// One way only.
    pub(super) fn cut(&self, from: MemberId, to: MemberId) {
        self.lock().cut.insert((from, to));
    }

    pub(super) fn heal(&self) {
        self.lock().cut.clear();
    }

    /// Takes a learner in, whose address follows from its id, as `config` has it.
    pub(super) async fn enroll(&self, through: &Store) -> MemberId {
        // The id is not known before, so neither is the address: it is the next index but one.
        let id = through.add_learner("to be named", "to be placed").await.expect("it is added");
        through.remove(id).await.expect("it is a learner");
        let guess = through.inner.member.view().last_index + 1;
        let (name, address) = (format!("member-{guess}"), format!("address-{guess}"));
        let id = through.add_learner(&name, &address).await.expect("it is added");
        assert_eq!(id, guess, "an id is the index of the next log entry");
        id
    }

    pub(super) async fn join(&self, through: &Store, engine: Engine, faults: &Faults) -> Store {
        let id = self.enroll(through).await;
        let config = self.config(id, engine, faults);
        let config = Config { cluster_id: Some(through.cluster_id()), ..config };
        let store = Store::join(config, self.transport(id)).await.expect("it opens");
        self.plug(&store);
        through.promote(id).await.expect("it catches up");
        store
    }

    pub(super) async fn cluster(&self, size: usize) -> Vec<Store> {
        let first = self.found().await;
        let mut stores = vec![first.clone()];
        while stores.len() < size {
            stores.push(self.join(&first, Engine::Memory, &Faults::default()).await);
        }
        stores
    }
}

pub(super) fn bytes(text: impl Into<String>) -> Bytes {
    Bytes::from(text.into())
}

/// Puts, again if there was no leader to tell what became of it: a machine that stands still for a
/// moment has an election when it goes on.
pub(super) async fn put(store: &Store, key: &str, value: &str) -> Entry {
    let begun = Instant::now();
    loop {
        match store.put(bytes(key), bytes(value), Precondition::Any).await {
            Err(WriteError::NotLeader { .. } | WriteError::Unknown) if begun.elapsed() < HANG => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            done => return done.expect("nothing stands against it"),
        }
    }
}

pub(super) fn contents(store: &Store) -> BTreeMap<Bytes, Entry> {
    store.current().range(b"", None).collect()
}

/// Waits until something holds.
pub(super) async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let waiting = async {
        let mut looks = tokio::time::interval(Duration::from_millis(10));
        while !holds().await {
            looks.tick().await;
        }
    };
    tokio::time::timeout(HANG, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Does something that may take no more than 2 s; again if it took longer, for a busy machine makes
/// anything late now and then.
pub(super) async fn in_two_seconds(what: &str, act: impl AsyncFn()) {
    for _ in 0..5 {
        let begun = Instant::now();
        act().await;
        if begun.elapsed() <= Duration::from_secs(2) {
            return;
        }
    }
    panic!("{what} takes longer than 2 s");
}

pub(super) fn leads(store: &Store) -> bool {
    matches!(*store.leadership().borrow(), Leadership::Leader { .. })
}

pub(super) async fn leader<'a>(stores: &[&'a Store]) -> &'a Store {
    loop {
        eventually("one of them leads", async || stores.iter().any(|store| leads(store))).await;
        // It may have lost the lead again.
        if let Some(found) = stores.iter().find(|store| leads(store)) {
            return found;
        }
    }
}

pub(super) async fn end(stores: impl IntoIterator<Item = Store>) {
    for store in stores {
        store.end().await.expect("its writer did not panic");
    }
}

/// Everyone has the same, at the same revision.
pub(super) async fn agree(stores: &[&Store]) {
    eventually("all have applied the same", async || {
        let revisions: BTreeSet<Revision> =
            stores.iter().map(|store| store.current().revision()).collect();
        revisions.len() == 1
    })
    .await;
    for store in stores {
        assert_eq!(contents(store), contents(stores[0]));
        assert_eq!(store.health().hash, stores[0].health().hash);
    }
}
