//! A handler's compiled code, which it can give back while nobody needs it.
//!
//! ```text
//!   mapped ──── `rest` ────▶ at rest ──── a request: `wake` ────▶ mapped
//! ```
//!
//! A request holds the code that it runs, so giving it back never takes it from anybody. Of the
//! requests that find it gone the first one has it mapped again; the others wait for that one, in
//! the order in which they came, as many as have a place and as long as their deadline lets them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use tokio::time::timeout;

use super::{Entry, HandleError, Inner};
use crate::engine::{LoadError, Module};

/// A page of linear memory.
const PAGE_BYTES: u64 = 64 << 10;

/// Has the code of a handler mapped again: the same code as before.
pub type Wake = Arc<dyn Fn() -> BoxFuture<'static, Result<Arc<Module>, LoadError>> + Send + Sync>;

/// Code that can be entered.
pub(crate) struct Linked {
    pub(super) entry: Entry,
    /// What the memories of an instance have at its beginning, at most.
    pub(super) memory_bytes: u64,
    /// Shared with others who run the same code: as long as one of them holds it, it is mapped once.
    _module: Option<Arc<Module>>,
}

impl Linked {
    fn new(entry: Entry, module: Option<Arc<Module>>) -> Linked {
        let component = match &entry {
            Entry::P2(entry) => entry.instance_pre().component(),
            Entry::P3(entry) => entry.instance_pre().component(),
        };
        // One that imports modules cannot say it.
        let needs = component.resources_required();
        let (largest, memories) =
            needs.map_or((0, 0), |it| (it.max_initial_memory_size.unwrap_or(0), it.num_memories));
        let memory_bytes = largest.saturating_mul(memories.into()).saturating_mul(PAGE_BYTES);
        Linked { entry, memory_bytes, _module: module }
    }
}

/// The code of one handler.
pub(crate) struct Code {
    /// None: at rest. Locked to look at it.
    linked: Mutex<Option<Arc<Linked>>>,
    /// Held by the one that has it mapped; it is fair.
    waking: tokio::sync::Mutex<()>,
    /// None: it is never given back.
    wake: Option<Wake>,
}

impl Code {
    /// That stays.
    pub(crate) fn kept(entry: Entry) -> Code {
        Code::new(Linked::new(entry, None), None)
    }

    /// That can be given back.
    pub(crate) fn shared(entry: Entry, module: Arc<Module>, wake: Wake) -> Code {
        Code::new(Linked::new(entry, Some(module)), Some(wake))
    }

    fn new(linked: Linked, wake: Option<Wake>) -> Code {
        let linked = Mutex::new(Some(Arc::new(linked)));
        Code { linked, waking: tokio::sync::Mutex::new(()), wake }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Linked>>> {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The code, if it is mapped.
    pub(super) fn get(&self) -> Option<Arc<Linked>> {
        self.lock().clone()
    }

    /// Gives it back, if it is there and can come again; says whether it did.
    pub(super) fn rest(&self) -> bool {
        // The last holder unmaps it: not under the lock.
        let given = self.wake.as_ref().and_then(|_| self.lock().take());
        given.is_some()
    }

    pub(super) fn is_at_rest(&self) -> bool {
        self.lock().is_none()
    }
}

impl Inner {
    /// The code, mapped again if it was given back.
    pub(super) async fn awake(&self) -> Result<Arc<Linked>, HandleError> {
        match self.code.get() {
            Some(linked) => Ok(linked),
            None => match timeout(self.pod.config.limits.request_deadline, self.wake()).await {
                Ok(woken) => woken,
                Err(_) => Err(HandleError::Deadline),
            },
        }
    }

    async fn wake(&self) -> Result<Arc<Linked>, HandleError> {
        let _alone = self.code.waking.lock().await;
        if let Some(linked) = self.code.get() {
            return Ok(linked);
        }
        let wake =
            self.code.wake.as_ref().expect("code that cannot come again is never given back");
        let module = wake().await;
        let linked = module.and_then(|module| {
            let entry = module.entry()?;
            Ok(Arc::new(Linked::new(entry, Some(module))))
        });
        match linked {
            Ok(linked) => {
                *self.code.lock() = Some(Arc::clone(&linked));
                Ok(linked)
            }
            Err(error) => {
                let why = match std::error::Error::source(&error) {
                    Some(cause) => format!("{error}: {cause}"),
                    None => error.to_string(),
                };
                let error = HandleError::Asleep(why);
                (self.pod.config.stderr)(format!("wherry: {error}\n").as_bytes());
                Err(error)
            }
        }
    }
}
