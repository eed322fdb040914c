//! Connections between two calls.
//!
//! Somebody has to read them all the same: a daemon that drains says so and waits
//! until its peers have gone, and asks silent ones whether they are there. One
//! task does that for all of them, as long as there are any. It looks now and then for
//! new ones: a client that asks again and again would otherwise wake it for each call.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::runtime::Handle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::connection::Connection;

/// How long a connection may wait for its next call: opening one takes the network's
/// latency twice, and daemons bound how many there are.
const IDLE: Duration = Duration::from_secs(15);

/// How soon a connection that waits is read: a draining daemon waits for that.
const LOOK: Duration = Duration::from_millis(50);

/// The connections that wait.
#[derive(Debug, Default)]
pub(super) struct IdleConnections {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    watcher: AtomicWaker,
}

#[derive(Default)]
struct State {
    waiting: Vec<(Connection, Instant)>,
    /// Whether the task is there.
    watched: bool,
}

impl IdleConnections {
    /// The connection that was used last, if one still serves.
    pub(super) fn take(&self) -> Option<Connection> {
        let mut state = self.shared.lock();
        while let Some((mut connection, since)) = state.waiting.pop() {
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            if since.elapsed() < IDLE && connection.is_open(&mut cx) {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for the next call.
    pub(super) fn keep(&self, connection: Connection) {
        // Outside of a runtime nobody would read it.
        let Ok(runtime) = Handle::try_current() else { return connection.leave() };
        let mut state = self.shared.lock();
        state.waiting.push((connection, Instant::now()));
        if !state.watched {
            state.watched = true;
            runtime.spawn(watch(Arc::downgrade(&self.shared)));
        }
    }
}

impl Drop for IdleConnections {
    fn drop(&mut self) {
        self.shared.lock().waiting.clear();
        self.shared.watcher.wake();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("waiting", &self.waiting.len()).finish_non_exhaustive()
    }
}

/// Says that nobody watches any more when the task ends before its time, with its
/// runtime. The connections were that runtime's too.
struct Watched {
    shared: Weak<Shared>,
    /// It has ended in time.
    over: bool,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let Some(shared) = self.shared.upgrade() else { return };
        let mut state = shared.lock();
        state.watched = false;
        state.waiting.clear();
    }
}

/// Reads the connections that wait until there are none. Their silence timers are
/// longer than [`IDLE`], and wake this task to close those whose time is up.
async fn watch(shared: Weak<Shared>) {
    let mut watched = Watched { shared: shared.clone(), over: false };
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    poll_fn(|cx| {
        let Some(shared) = shared.upgrade() else { return Poll::Ready(()) };
        shared.watcher.register(cx.waker());
        let mut state = shared.lock();
        state
            .waiting
            .retain_mut(|(connection, since)| since.elapsed() < IDLE && connection.is_open(cx));
        if state.waiting.is_empty() {
            // Under the lock: who keeps one after this starts another task.
            state.watched = false;
            return Poll::Ready(());
        }
        // The last look registers for the next.
        while looks.poll_tick(cx).is_ready() {}
        Poll::Pending
    })
    .await;
    watched.over = true;
}
