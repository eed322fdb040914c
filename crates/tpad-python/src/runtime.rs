//! Waiting for what the client does: with the GIL released and signals heard, or by a
//! callback.

use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use pyo3::prelude::*;
use tokio::runtime::{Builder, Runtime};
use tokio::task::AbortHandle;

use crate::errors::Failure;

/// How often somebody who waits looks whether Ctrl-C was pressed.
const TICK: Duration = Duration::from_millis(50);

/// Threads that look after connections; blocks are received by whoever waits for them.
const WORKERS: usize = 2;

/// A process's runtime, made when it is first needed, for as long as the process lives.
struct Own {
    process: u32,
    runtime: Runtime,
}

static OWN: AtomicPtr<Own> = AtomicPtr::new(std::ptr::null_mut());

/// The runtime of this process. A child that was forked gets one of its own: the threads of
/// its parent's are not there.
#[expect(unsafe_code, reason = "a lock would be held for ever in a child of a thread that had it")]
pub(crate) fn runtime() -> PyResult<&'static Runtime> {
    let process = std::process::id();
    loop {
        let known = OWN.load(Ordering::Acquire);
        // SAFETY: what is stored is null or comes from `Box::into_raw` below and is never
        // freed or written to again.
        if let Some(own) = unsafe { known.as_ref() }
            && own.process == process
        {
            return Ok(&own.runtime);
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .thread_name("tpad")
            .enable_all()
            .build()?;
        let own = Box::into_raw(Box::new(Own { process, runtime }));
        if OWN.compare_exchange(known, own, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: it comes from `Box::into_raw` and nobody else has seen it.
            drop(unsafe { Box::from_raw(own) });
        }
    }
}

/// Waits for `future` on this thread, with the GIL released. An exception that a signal's
/// handler raises, such as `KeyboardInterrupt`, ends the wait and drops the future.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = Result<T, Failure>> + Send,
) -> PyResult<T> {
    let runtime = runtime()?;
    let mut future = pin!(future);
    loop {
        let turn = future.as_mut();
        match py.detach(|| runtime.block_on(async { tokio::time::timeout(TICK, turn).await })) {
            Ok(result) => return result.map_err(|failure| failure.raise(py)),
            Err(_tick) => py.check_signals()?,
        }
    }
}

/// As [`wait`], for what is not to be dropped half way: an exception of a signal or of
/// `meanwhile`, which is called every now and then and once at the end, is raised after `stop`
/// was called and the future came to its own end.
pub(crate) fn wait_to_the_end<T: Send>(
    py: Python<'_>,
    future: impl Future<Output = Result<T, Failure>> + Send,
    mut meanwhile: impl FnMut(Python<'_>) -> PyResult<()>,
    stop: impl Fn(),
) -> PyResult<T> {
    let runtime = runtime()?;
    let mut future = pin!(future);
    let mut raised = None;
    loop {
        let turn = future.as_mut();
        let turn = py.detach(|| runtime.block_on(async { tokio::time::timeout(TICK, turn).await }));
        if raised.is_none()
            && let Err(error) = py.check_signals().and_then(|()| meanwhile(py))
        {
            stop();
            raised = Some(error);
        }
        match (turn, raised.take()) {
            (Ok(_), Some(error)) => return Err(error),
            (Ok(result), None) => return result.map_err(|failure| failure.raise(py)),
            (Err(_tick), before) => raised = before,
        }
    }
}

/// Waits for `future`, or, with a callback, starts it and returns its [`Task`]: the
/// callback is called with what came of it and `None`, or with `None` and an exception, on
/// some other thread.
pub(crate) fn run<T: Send + 'static>(
    py: Python<'_>,
    done: Option<Py<PyAny>>,
    future: impl Future<Output = Result<T, Failure>> + Send + 'static,
    convert: impl FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
) -> PyResult<Py<PyAny>> {
    let Some(done) = done else {
        let result = wait(py, future)?;
        return convert(py, result);
    };
    let task = runtime()?.spawn(async move {
        let result = future.await;
        // Not on this thread: the GIL may have to be waited for.
        let tell = move || {
            let told = Python::try_attach(|py| {
                let result = match result {
                    Ok(value) => convert(py, value),
                    Err(failure) => Err(failure.raise(py)),
                };
                let told = match result {
                    Ok(value) => done.call1(py, (value, py.None())),
                    Err(error) => done.call1(py, (py.None(), error.into_value(py))),
                };
                if let Err(error) = told {
                    error.write_unraisable(py, None);
                }
            });
            // The interpreter is at its end, and nobody waits any more.
            let _at_the_end = told;
        };
        let _told = tokio::task::spawn_blocking(tell).await;
    });
    Ok(Py::new(py, Task(task.abort_handle()))?.into_any())
}

/// Something that was started.
#[pyclass(frozen, module = "tpad._tpad")]
pub(crate) struct Task(AbortHandle);

#[pymethods]
impl Task {
    /// Ends it; what it has got so far is given back.
    fn cancel(&self) {
        self.0.abort();
    }
}

/// What belongs to the process that made it: a forked child does not touch it, not even to
/// drop it, since the locks inside may be held by threads that it does not have.
#[derive(Debug)]
pub(crate) struct Here<T> {
    value: std::mem::ManuallyDrop<T>,
    process: u32,
}

impl<T> Here<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: std::mem::ManuallyDrop::new(value), process: std::process::id() }
    }

    /// The value, in the process that made it.
    pub(crate) fn get(&self) -> Result<&T, Failure> {
        if self.process == std::process::id() {
            return Ok(&self.value);
        }
        Err(Failure::forked(self.process))
    }
}

impl<T> Deref for Here<T> {
    type Target = T;

    /// The value, for what only reads memory that children have, too.
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Drop for Here<T> {
    #[expect(unsafe_code, reason = "it is dropped in one process and left alone in another")]
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // SAFETY: this is the only place that drops it, and it runs once.
            unsafe { std::mem::ManuallyDrop::drop(&mut self.value) }
        }
    }
}
