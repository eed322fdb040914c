//! One test: a runtime, a directory and a log of its own.

use std::path::Path;

use tempfile::TempDir;
use tracing::Dispatch;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::Registry;

use crate::logs::Logs;

/// What a test has for itself.
#[derive(Debug)]
pub struct Scene {
    logs: Logs,
    directory: TempDir,
}

impl Scene {
    /// What the test's daemons log.
    #[must_use]
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// A directory that goes with the test.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

/// Plays a test on a runtime of its own, whose threads log to it alone, and
/// fails it for warnings and errors that it did not list.
///
/// # Panics
/// When the test does, or for its log.
pub fn play<T>(test: impl AsyncFnOnce(&Scene) -> T) -> T {
    let logs = Logs::default();
    let dispatch = Dispatch::new(Registry::default().with(logs.clone()));
    let for_threads = dispatch.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_start(move || {
            // The thread's whole life logs to the test, so nothing undoes it.
            std::mem::forget(tracing::dispatcher::set_default(&for_threads));
        })
        .build()
        .expect("a runtime");
    let directory = TempDir::with_prefix("tpad-test-").expect("a temporary directory");
    let scene = Scene { logs, directory };
    let result = {
        let _guard = tracing::dispatcher::set_default(&dispatch);
        runtime.block_on(test(&scene))
    };
    // Waits for what the test left running: a line logged late counts too.
    drop(runtime);
    scene.logs.check();
    result
}
