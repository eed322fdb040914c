//! Blocks that were asked for and not waited for.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyList;
use tokio::task::JoinHandle;

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
    /// Somebody waits for it now.
    Awaited,
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

    /// Begins a call.
    pub(crate) fn begin(
        call: impl Future<Output = Result<Leases, Failure>> + Send + 'static,
    ) -> PyResult<Self> {
        let coming = Coming(runtime()?.spawn(call));
        Ok(Self(Here::new(Mutex::new(State::Coming(coming)))))
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
            State::Awaited => false,
        })
    }

    /// Gives up what was asked for; what has come of it is given back.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        self.set(py, State::Over("it was cancelled"))
    }

    /// Waits for the blocks and returns them, in the order in which they were asked for; once.
    /// Raises what `Client.experts` raises.
    fn wait(&self, py: Python<'_>) -> PyResult<Py<PyList>> {
        let state = std::mem::replace(&mut *self.state(py)?, State::Awaited);
        let leases = match state {
            State::There(leases) => leases,
            State::Coming(mut coming) => {
                let ended = wait(py, async { Ok((&mut coming.0).await) });
                match ended {
                    Ok(Ok(result)) => {
                        self.set(py, State::Over("its blocks were taken"))?;
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
            State::Awaited => {
                return Err(PyValueError::new_err("another thread waits for these blocks"));
            }
            State::Over(why) => {
                self.set(py, State::Over(why))?;
                return Err(PyValueError::new_err(format!("nothing to wait for: {why}")));
            }
        };
        self.set(py, State::Over("its blocks were taken"))?;
        let blocks = leases.into_iter().map(|lease| Py::new(py, Block::of(lease)));
        Ok(PyList::new(py, blocks.collect::<PyResult<Vec<_>>>()?)?.unbind())
    }
}
