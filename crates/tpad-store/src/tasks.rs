//! Tasks that stay on the runtime of their owner.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
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
}
