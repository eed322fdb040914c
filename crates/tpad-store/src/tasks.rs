//! Tasks that stay on the runtime of their owner.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use tokio::runtime::Handle;
use tokio::task::{JoinHandle, unconstrained};
use tokio_util::task::TaskTracker;
pub use tokio_util::task::task_tracker::TaskTrackerToken as TaskToken;

/// The tasks of one owner, on the runtime that it was made in.
///
/// Who has the owner do something may be on another runtime: a thread that serves
/// connections, which others wait for and which may end earlier.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    /// None: on whichever runtime a task is begun.
    home: Option<Handle>,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self { tracker: TaskTracker::new(), home: Handle::try_current().ok() }
    }

    /// Begins a task.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match &self.home {
            Some(home) => self.tracker.spawn_on(task, home),
            None => self.tracker.spawn(task),
        }
    }

    /// Begins a task that nobody asks for its outcome. What it does before it first waits is
    /// done when this returns: so tasks begin in the order in which they are begun, which
    /// spawned ones do not.
    pub fn begin(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut task = Box::pin(task);
        // The owner's runtime may be ending: it is to end the task, not whoever begins it.
        if !self.tracker.is_closed() {
            // What it waits for is watched by the owner's runtime.
            let _home = self.home.as_ref().map(Handle::enter);
            // As far as it comes, however much whoever begins it has done before. Who polls it
            // next looks again, whatever was missed.
            let mut first = pin!(unconstrained(task.as_mut()));
            if first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                return;
            }
        }
        self.spawn(task);
    }

    /// What counts as a task as long as it is there: for what goes on elsewhere.
    pub fn token(&self) -> TaskToken {
        self.tracker.token()
    }

    /// From here on [`Tasks::wait`] ends when the last task has.
    pub fn close(&self) {
        self.tracker.close();
    }

    /// Whether none runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until they are closed and over.
    pub async fn wait(&self) {
        self.tracker.wait().await;
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn a_task_runs_where_its_owner_is_whoever_begins_it() {
        let runtime = |name: &str| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(1).thread_name(name.to_owned()).build().expect("a runtime")
        };
        let (home, elsewhere) = (runtime("home"), runtime("elsewhere"));
        let tasks = home.block_on(async { Tasks::new() });
        let begun = elsewhere.block_on(async {
            tasks.spawn(async { std::thread::current().name().map(str::to_owned) }).await
        });
        assert_eq!(begun.expect("it ends").as_deref(), Some("home"));
        tasks.close();
        elsewhere.block_on(tasks.wait());
    }

    #[tokio::test]
    async fn tasks_begin_in_order_and_go_on_by_themselves() {
        let (tasks, order) = (Tasks::new(), Arc::new(Mutex::new(Vec::new())));
        // More than a task may do at a time.
        let many = Arc::new(Semaphore::new(1000));
        for n in 0..300 {
            let (order, many) = (Arc::clone(&order), Arc::clone(&many));
            tasks.begin(async move {
                let _one = many.acquire().await.expect("it is open");
                order.lock().expect("nobody panics").push(n);
                tokio::time::sleep(Duration::from_millis(1)).await;
                order.lock().expect("nobody panics").push(n);
            });
        }
        assert_eq!(*order.lock().expect("nobody panics"), (0..300).collect::<Vec<_>>());
        tasks.close();
        tasks.wait().await;
        assert_eq!(order.lock().expect("nobody panics").len(), 600);
        let (over, ended) = tokio::sync::oneshot::channel();
        tasks.begin(async move { over.send(()).expect("it is awaited") });
        ended.await.expect("what is begun late runs as a task");
    }
}
