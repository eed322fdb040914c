//! Blocks that were asked for and not waited for.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use tokio::task::{AbortHandle, JoinHandle};

use crate::block::Block;
use crate::errors::Failure;
use crate::runtime::{Here, runtime, wait};
use crate::source::Leases;

/// Experts on their way, from `Client.begin_experts`.
///
/// They come while the worker does something else; `wait()` returns them. When this object is
/// dropped, or after `cancel()`, what has come is given back.
#[pyclass(frozen, module = "tpad")]
pub(crate) struct Pending(Here<Mutex<State>>);

/// How far it is.
enum State {
    There(Leases),
    Coming(Coming),
    /// Somebody waits for it now, and can be told not to.
    Awaited(AbortHandle),
    /// It was taken, or given up.
    Over(&'static str),
}

/// A call that ends when nobody wants what it brings.
struct Coming(JoinHandle<Result<Leases, Failure>>);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Pending {
    /// What was there already.
    pub(crate) fn there(leases: Leases) -> Self {
        Self(Here::new(Mutex::new(State::There(leases))))
    }

    /// Begins a call: what it sends before it waits is sent when this returns, so calls are
    /// sent in the order in which they are begun.
    pub(crate) fn begin(
        call: impl Future<Output = Result<Leases, Failure>> + Send + 'static,
    ) -> PyResult<Self> {
        let runtime = runtime()?;
        let mut call = Box::pin(call);
        let first = {
            let _entered = runtime.enter();
            // Whoever waits for it looks again, whatever was missed.
            call.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        };
        let coming = match first {
            Poll::Ready(ended) => runtime.spawn(std::future::ready(ended)),
            Poll::Pending => runtime.spawn(call),
        };
        Ok(Self(Here::new(Mutex::new(State::Coming(Coming(coming))))))
    }

    fn state(&self, py: Python<'_>) -> PyResult<MutexGuard<'_, State>> {
        let state = self.0.get().map_err(|failure| failure.raise(py))?;
        Ok(state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, py: Python<'_>, state: State) -> PyResult<()> {
        // What was there is dropped after the lock.
        let before = std::mem::replace(&mut *self.state(py)?, state);
        drop(before);
        Ok(())
    }
}

#[pymethods]
impl Pending {
    /// Whether `wait` would return, or raise, at once.
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(match &*self.state(py)? {
            State::There(_) | State::Over(_) => true,
            State::Coming(coming) => coming.0.is_finished(),
            State::Awaited(_) => false,
        })
    }

    /// Gives up what was asked for; what has come of it is given back. Whoever waits for it is
    /// told, unless it came before.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        let mut state = self.state(py)?;
        if let State::Awaited(call) = &*state {
            call.abort();
            return Ok(());
        }
        let before = std::mem::replace(&mut *state, State::Over("it was cancelled"));
        drop(state);
        drop(before);
        Ok(())
    }

    /// Waits for the blocks and returns them, in the order in which they were asked for; once.
    /// Raises what `Client.experts` raises.
    fn wait(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let leases = match self.take(py)? {
            Taken::There(leases) => leases,
            Taken::Coming(mut coming) => {
                let ended = wait(py, async { Ok((&mut coming.0).await) });
                match ended {
                    Ok(Ok(result)) => {
                        self.set(py, State::Over(TAKEN))?;
                        result.map_err(|failure| failure.raise(py))?
                    }
                    Ok(Err(_)) => {
                        self.set(py, State::Over("it was cancelled"))?;
                        return Err(Failure::said("cancelled", "the call was ended").raise(py));
                    }
                    // A signal: it may be waited for again.
                    Err(error) => {
                        self.set(py, State::Coming(coming))?;
                        return Err(error);
                    }
                }
            }
        };
        let blocks = leases.into_iter().map(|lease| Py::new(py, Block::of(lease)));
        Ok(PyList::new(py, blocks.collect::<PyResult<Vec<_>>>()?)?.unbind())
    }
}

/// Why there is nothing to wait for a second time.
const TAKEN: &str = "its blocks were taken";

/// What there is to wait for.
enum Taken {
    There(Leases),
    Coming(Coming),
}

impl Pending {
    /// What there is to wait for, for one thread.
    fn take(&self, py: Python<'_>) -> PyResult<Taken> {
        let mut state = self.state(py)?;
        let (next, taken) = match std::mem::replace(&mut *state, State::Over(TAKEN)) {
            State::There(leases) => (State::Over(TAKEN), Ok(Taken::There(leases))),
            State::Coming(coming) => {
                (State::Awaited(coming.0.abort_handle()), Ok(Taken::Coming(coming)))
            }
            State::Awaited(call) => {
                let text = "another thread waits for these blocks".to_owned();
                (State::Awaited(call), Err(text))
            }
            State::Over(why) => (State::Over(why), Err(format!("nothing to wait for: {why}"))),
        };
        *state = next;
        taken.map_err(PyValueError::new_err)
    }
}
