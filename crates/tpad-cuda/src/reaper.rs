//! What a GPU may still read, kept until it cannot.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{Completion, CudaError, Device};

/// How soon the driver is asked again when it does not say what was submitted: while a
/// graph is captured, which takes some milliseconds to seconds.
const AGAIN: Duration = Duration::from_millis(10);

/// Gives things up when the work that was submitted to a device before has completed.
///
/// A worker that drops a lease hands it to the reaper: kernels that it launched before
/// may still read the block. Things go in the order in which they came. Dropped, the
/// reaper waits until the last one is gone.
///
/// A captured graph submits its kernels whenever it is launched: who captures a block's
/// address keeps its lease for the graph's life. While a stream of the context is being
/// captured nothing should be given to the reaper: see [`Device::submitted`].
pub struct Reaper {
    device: Arc<dyn Device>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bounded by what exists to be given up: each is a lease that someone holds.
    held: VecDeque<Held>,
    /// Those that are waited for right now.
    leaving: usize,
    ended: bool,
}

struct Held {
    /// None: the driver did not say what was submitted, and is asked again.
    submitted: Option<Box<dyn Completion>>,
    /// Dropped afterwards.
    what: Box<dyn Send>,
}

impl Reaper {
    /// A reaper for one device, with a thread of its own.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(device: &Arc<dyn Device>) -> Result<Self, CudaError> {
        let shared = Arc::<Shared>::default();
        let (device, theirs) = (Arc::clone(device), Arc::clone(&shared));
        let (asked, name) = (Arc::clone(&device), format!("gpu{}-leases", device.facts().index));
        let thread = thread::Builder::new().name(name).spawn(move || theirs.run(&*asked));
        let thread = thread.map_err(|error| CudaError::system("starting a thread", error))?;
        Ok(Self { device, shared, thread: Some(thread) })
    }

    /// Drops `what`, on the reaper's thread, when all work that this process has
    /// submitted to the device by now has completed. Does not block.
    pub fn give_up(&self, what: impl Send + 'static) {
        let submitted = match self.device.submitted() {
            Ok(submitted) => Some(submitted),
            // Nothing of a dead context reads any more.
            Err(error) if error.is_sticky() => return,
            Err(_) => None,
        };
        self.shared.lock().held.push_back(Held { submitted, what: Box::new(what) });
        self.shared.changed.notify_all();
    }

    /// How many things wait to go.
    #[must_use]
    pub fn pending(&self) -> usize {
        let state = self.shared.lock();
        state.held.len() + state.leaving
    }

    /// Blocks until everything that was given up so far is gone, for tests and for an
    /// orderly end.
    pub fn drain(&self) {
        let mut state = self.shared.lock();
        while state.held.len() + state.leaving > 0 {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, device: &dyn Device) {
        while let Some(held) = self.next() {
            self.outlast(device, held.submitted);
            drop(held.what);
            self.lock().leaving -= 1;
            self.changed.notify_all();
        }
    }

    /// The next one; `None` at the end.
    fn next(&self) -> Option<Held> {
        let mut state = self.lock();
        loop {
            if let Some(held) = state.held.pop_front() {
                state.leaving += 1;
                return Some(held);
            }
            if state.ended {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the work has completed, or cannot go on.
    fn outlast(&self, device: &dyn Device, mut submitted: Option<Box<dyn Completion>>) {
        loop {
            // What is submitted by now includes what was then.
            let work = submitted.take().map_or_else(|| device.submitted(), Ok);
            match work.and_then(|work| work.wait()) {
                Ok(()) => return,
                Err(error) if error.is_sticky() => return,
                Err(_) => {
                    let waited = self.changed.wait_timeout(self.lock(), AGAIN);
                    drop(waited.unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper").field("pending", &self.pending()).finish_non_exhaustive()
    }
}
