//! A few seconds of everything at once: three members on disk, clients that write and read through
//! any of them, and somebody who cuts, kills and moves the leader about. Longer with
//! `WHERRY_SOAK_SECONDS`, and again with the `WHERRY_SOAK_SEED` that a failure prints.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use super::net::{HANG, Net, agree, bytes, eventually};
use super::*;

/// A small generator, so that a seed means the same for ever.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

fn from_env(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// What the clients share.
#[derive(Default)]
struct Run {
    /// The members; one that is being restarted is away.
    stores: Mutex<Vec<Option<Store>>>,
    /// Every write that was acknowledged.
    acknowledged: Mutex<BTreeMap<Bytes, Revision>>,
    newest: AtomicU64,
    unknown: AtomicU64,
    reads: AtomicU64,
    stop: AtomicBool,
}

impl Run {
    fn pick(&self, dice: &mut Dice) -> Option<Store> {
        let stores = self.stores.lock().expect("the test does not panic here");
        stores[dice.below(stores.len() as u64) as usize].clone()
    }

    async fn client(self: Arc<Run>, number: u64, seed: u64) {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9).wrapping_add(number + 1));
        let mut count = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let Some(store) = self.pick(&mut dice) else {
                tokio::task::yield_now().await;
                continue;
            };
            let before = self.newest.load(Ordering::SeqCst);
            if dice.below(3) == 0 {
                if let Ok(snapshot) = store.read().await {
                    assert!(snapshot.revision() >= before, "seed {seed}: a read missed a write");
                    self.reads.fetch_add(1, Ordering::Relaxed);
                }
                continue;
            }
            let key = bytes(format!("client/{number}/{count}"));
            count += 1;
            match store.put(key.clone(), bytes("value"), Precondition::Absent).await {
                Ok(entry) => {
                    assert!(entry.modified > before, "seed {seed}: revisions follow real time");
                    self.newest.fetch_max(entry.modified, Ordering::SeqCst);
                    let mut all = self.acknowledged.lock().expect("the test does not panic here");
                    all.insert(key, entry.modified);
                }
                Err(WriteError::Unknown) => {
                    self.unknown.fetch_add(1, Ordering::Relaxed);
                }
                Err(WriteError::Conflict { .. }) => panic!("seed {seed}: a key of its own exists"),
                Err(_) => {}
            }
        }
    }
}

struct Nemesis {
    net: Net,
    run: Arc<Run>,
    folders: Vec<tempfile::TempDir>,
    ids: Vec<MemberId>,
    dice: Dice,
}

impl Nemesis {
    async fn restart(&mut self, index: usize) {
        let taken = self.run.stores.lock().expect("the test does not panic here")[index].take();
        if let Some(store) = taken {
            self.net.kill(&store).await;
        }
        let engine = Engine::Rocks(self.folders[index].path().to_owned());
        let id = self.ids[index];
        let config = self.net.config(id, engine, &Faults::default());
        let store = Store::join(config, self.net.transport(id)).await.expect("it opens again");
        self.net.plug(&store);
        self.run.stores.lock().expect("the test does not panic here")[index] = Some(store);
    }

    async fn step(&mut self) {
        let index = self.dice.below(3) as usize;
        let store = self.run.stores.lock().expect("the test does not panic here")[index].clone();
        let store = store.expect("only this task takes them");
        match self.dice.below(5) {
            0 => self.restart(index).await,
            1 => self.net.isolate_id(self.ids[index], &self.ids),
            2 => drop(store.transfer(Some(self.ids[index])).await),
            3 => self.net.cut(self.ids[index], self.ids[(index + 1) % 3]),
            _ => self.net.heal(),
        }
        tokio::time::sleep(Duration::from_millis(50 + self.dice.below(900))).await;
        if self.dice.below(2) == 0 {
            self.net.heal();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_whatever_happens() {
    let seconds = from_env("WHERRY_SOAK_SECONDS", 6);
    let seed = from_env("WHERRY_SOAK_SEED", u64::from(std::process::id()) * 7919 + 1);
    let net = Net::default();
    let mut folders = Vec::new();
    let mut stores: Vec<Store> = Vec::new();
    for _ in 0..3 {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let engine = Engine::Rocks(folder.path().to_owned());
        let store = match stores.first().cloned() {
            None => net.found_with(engine, &Faults::default()).await,
            Some(first) => net.join(&first, engine, &Faults::default()).await,
        };
        folders.push(folder);
        stores.push(store);
    }
    let ids: Vec<MemberId> = stores.iter().map(Store::member_id).collect();
    let run = Arc::new(Run::default());
    *run.stores.lock().expect("the test does not panic here") =
        stores.drain(..).map(Some).collect();
    let clients: Vec<_> = (0..6).map(|n| tokio::spawn(run.clone().client(n, seed))).collect();

    let mut nemesis =
        Nemesis { net: net.clone(), run: run.clone(), folders, ids, dice: Dice(seed | 1) };
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until && clients.iter().all(|client| !client.is_finished()) {
        nemesis.step().await;
    }
    net.heal();
    run.stop.store(true, Ordering::Relaxed);
    for client in clients {
        let ended = tokio::time::timeout(HANG, client).await.expect("no client hangs");
        ended.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let stores = run.stores.lock().expect("the test does not panic here").clone();
    let stores: Vec<Store> = stores.into_iter().flatten().collect();
    let all: Vec<&Store> = stores.iter().collect();
    eventually("they serve", async || {
        stores[0].put(bytes("end"), bytes("value"), Precondition::Any).await.is_ok()
    })
    .await;
    agree(&all).await;
    let state = stores[0].current();
    let acknowledged = run.acknowledged.lock().expect("the test does not panic here").clone();
    for (key, revision) in &acknowledged {
        let found = state.get(key).map(|entry| entry.modified);
        assert_eq!(found, Some(*revision), "seed {seed} lost {key:?}");
    }
    let (unknown, reads) = (&run.unknown, &run.reads);
    println!("seed {seed}: {} writes, {unknown:?} unknown, {reads:?} reads", acknowledged.len());
    assert!(acknowledged.len() > 20, "seed {seed}: only {} writes", acknowledged.len());
    for store in stores {
        store.end().await.expect("its writer did not panic");
    }
}
