//! The threads that serve connections.
//!
//! A connection stays on the thread that it was given, with all of its streams. On a
//! runtime that shares its tasks among threads each step of a request (a frame comes
//! in, a stream answers, the connection writes) wakes a thread that was asleep, which
//! takes it over and finds nothing of it in its caches: on sixteen processors that was
//! a third of what a small request cost.
//!
//! Where there are processors to spare there are more threads than that, so that most
//! connections have one alone: a small request then waits for no large write of
//! another. Where there are few, threads would only wait for each other, and longer than
//! connections of one thread do that write in turns (docs/performance.md, "Small
//! requests").

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::dispatcher::{self, Dispatch};

use super::line::{Line, Place};

/// Tasks that a thread polls before it looks for what has come in. Bulk connections keep
/// their thread busy and a poll of one is half a millisecond: with the runtime's 61 a small
/// request beside them was seen after 10 ms (docs/performance.md, "Small requests"). Looking
/// costs a system call that waits for nothing, which no load of small requests shows.
const EVENT_INTERVAL: u32 = 1;

/// Every so many tasks the next is one that another thread woke.
const REMOTE_INTERVAL: u32 = 2;

/// So few processors get a thread each.
const FEW_PROCESSORS: usize = 3;

/// Threads for each processor where there are more.
const PER_PROCESSOR: usize = 4;

/// The threads, each begun for the first connection that finds the others taken. Dropped,
/// they end with everything that they still serve.
#[derive(Debug)]
pub(super) struct Threads {
    threads: Mutex<Vec<Arc<Thread>>>,
    /// 0: everything stays where it is.
    most: usize,
}

#[derive(Debug)]
struct Thread {
    /// Of a runtime that polls its tasks in the order in which they were woken. One of many
    /// threads has what was woken last run first: with more than two connections that are
    /// always ready it left all but two of them waiting, for up to 0.2 s.
    runtime: Handle,
    connections: AtomicUsize,
    line: Arc<Line>,
    /// Dropped, the runtime ends with all that it still serves.
    _end: oneshot::Sender<()>,
}

/// A connection's place on a thread.
#[derive(Debug)]
pub(super) struct Seat(Arc<Thread>);

impl Threads {
    /// For a runtime of many threads. One that has a single thread itself keeps its
    /// connections: a program that wants no more gets no more.
    pub(super) fn of_runtime() -> Self {
        if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
            return Self::none();
        }
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let each = if processors <= FEW_PROCESSORS { 1 } else { PER_PROCESSOR };
        Self::at_most(each * processors)
    }

    /// No threads.
    pub(super) fn none() -> Self {
        Self::at_most(0)
    }

    fn at_most(most: usize) -> Self {
        Self { threads: Mutex::default(), most }
    }

    /// How many threads serve connections at most, the runtime's own if there are no others.
    pub(super) fn most(&self) -> usize {
        self.most.max(1)
    }

    /// A place on the thread with the fewest connections; `None` where there are no
    /// threads.
    pub(super) fn seat(&self) -> Option<Seat> {
        // Nothing is left half done under the lock.
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let by_connections = |thread: &&Arc<Thread>| thread.connections.load(Ordering::Relaxed);
        let emptiest = threads.iter().min_by_key(by_connections).map(Arc::clone);
        let taken = emptiest.as_ref().is_none_or(|thread| by_connections(&thread) > 0);
        let mut chosen = emptiest;
        if taken && threads.len() < self.most {
            match Thread::start(threads.len()) {
                Ok(thread) => {
                    let thread = Arc::new(thread);
                    threads.push(Arc::clone(&thread));
                    chosen = Some(thread);
                }
                // It shares one, or stays where it is.
                Err(error) => tracing::warn!(%error, "no thread for one more connection"),
            }
        }
        let thread = chosen?;
        thread.connections.fetch_add(1, Ordering::Relaxed);
        Some(Seat(thread))
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Self> {
        let name = format!("tpad-edge-{number}");
        // Who listens to what is said here listens to what is said there.
        let listener = dispatcher::get_default(Dispatch::clone);
        let listen = listener.clone();
        let mut builder = Builder::new_current_thread();
        builder.event_interval(EVENT_INTERVAL).global_queue_interval(REMOTE_INTERVAL);
        builder.thread_name(&name).on_thread_start(move || {
            std::mem::forget(dispatcher::set_default(&listen));
        });
        let runtime = Driven(Some(builder.enable_all().build()?));
        let handle = runtime.handle()?;
        let (end, ended) = oneshot::channel::<()>();
        thread::Builder::new().name(name).spawn(move || {
            let _listening = dispatcher::set_default(&listener);
            // Nothing is sent: it ends when the sender is gone.
            runtime.block_on(ended);
        })?;
        Ok(Self {
            runtime: handle,
            connections: AtomicUsize::new(0),
            line: Arc::default(),
            _end: end,
        })
    }
}

/// A runtime that may be dropped wherever it is: also by a task, if no thread was to be had.
struct Driven(Option<Runtime>);

impl Driven {
    fn handle(&self) -> io::Result<Handle> {
        let runtime = self.0.as_ref().ok_or_else(|| io::Error::other("it has ended"))?;
        Ok(runtime.handle().clone())
    }

    fn block_on<T>(&self, end: impl Future<Output = T>) {
        if let Some(runtime) = &self.0 {
            let _ = runtime.block_on(end);
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Seat {
    /// A place in the line of the thread's connections.
    pub(super) fn place(&self) -> Place {
        self.0.line.place()
    }

    /// Begins a task on the thread, as one of `tracker`'s.
    pub(super) fn spawn<F>(&self, tracker: &TaskTracker, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tracker.spawn_on(task, &self.0.runtime);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(threads: &Threads) -> Vec<usize> {
        let threads = threads.threads.lock().expect("no panic");
        threads.iter().map(|thread| thread.connections.load(Ordering::Relaxed)).collect()
    }

    #[tokio::test]
    async fn a_runtime_that_got_no_thread_can_be_dropped_by_a_task() {
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        drop(Driven(Some(runtime)));
    }

    #[tokio::test]
    async fn a_runtime_of_one_thread_gets_no_others() {
        assert!(Threads::of_runtime().seat().is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_connection_has_a_thread_until_they_have_to_share() {
        let threads = Threads::at_most(3);
        let mut seats: Vec<Seat> = (0..2).filter_map(|_| threads.seat()).collect();
        assert_eq!(held(&threads), [1, 1]);
        seats.pop();
        seats.extend(threads.seat());
        assert_eq!(held(&threads), [1, 1], "one that is free is taken first");
        seats.extend((0..4).filter_map(|_| threads.seat()));
        assert_eq!(held(&threads), [2, 2, 2]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_served_stays_on_its_thread_and_ends_with_it() {
        let (threads, tracker) = (Threads::of_runtime(), TaskTracker::new());
        let seat = threads.seat().expect("a place");
        let (tell, told) = oneshot::channel();
        seat.spawn(&tracker, async move {
            drop(tell.send(thread::current().name().map(str::to_owned)));
        });
        let name = told.await.expect("it runs").expect("threads have names");
        assert_eq!(name, "tpad-edge-0");
        seat.spawn(&tracker, std::future::pending());
        tracker.close();
        drop((seat, threads));
        tracker.wait().await;
    }
}
