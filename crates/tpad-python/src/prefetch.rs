//! Prefetch: blocks brought to the daemon's memory while the worker does something else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tpad_client::{Amount, Client, Error, Prefetched, Scope};
use tpad_manifest::{BlockKey, ExpertKey};

use crate::connection::{json, limit};
use crate::errors::Failure;
use crate::runtime::{Here, run, runtime};

/// What became of it, once something did.
type Outcome = Option<Result<Prefetched, Arc<Error>>>;

/// A prefetch under way. It goes on when this object is dropped; `cancel()` ends it.
///
/// It is a guess: the daemon reads after everybody who waits, and into memory that nobody
/// needs.
#[pyclass(frozen, module = "tpad")]
pub(crate) struct Prefetch(Here<Under>);

struct Under {
    outcome: watch::Receiver<Outcome>,
    task: AbortHandle,
}

impl Prefetch {
    /// Starts one, and does not wait for the daemon.
    pub(crate) fn start(
        py: Python<'_>,
        client: Client,
        model: String,
        keys: Vec<BlockKey>,
    ) -> PyResult<Self> {
        // A scope is experts at layers: one for each layer.
        let mut layers: BTreeMap<u32, Vec<ExpertKey>> = BTreeMap::new();
        for key in keys {
            if let BlockKey::Expert { key, layer } = key {
                layers.entry(layer).or_default().push(key);
            }
        }
        let (tell, outcome) = watch::channel(None);
        let work = async move {
            let mut calls = JoinSet::new();
            for (layer, experts) in layers {
                let (client, model) = (client.clone(), model.clone());
                let scope = Scope { experts, layers: vec![layer], ..Scope::default() };
                calls.spawn(async move { client.prefetch(&model, scope).await?.finish().await });
            }
            let mut sum = Prefetched::default();
            let mut failed = None;
            while let Some(call) = calls.join_next().await {
                match call {
                    Ok(Ok(done)) => add(&mut sum, done),
                    Ok(Err(error)) => failed = failed.or(Some(error)),
                    // Cancelled with this task.
                    Err(_) => return,
                }
            }
            // Whoever asks may be gone.
            let _nobody = tell.send(Some(failed.map_or(Ok(sum), |error| Err(Arc::new(error)))));
        };
        let _attached = py;
        let task = runtime()?.spawn(work).abort_handle();
        Ok(Self(Here::new(Under { outcome, task })))
    }
}

fn add(sum: &mut Prefetched, done: Prefetched) {
    let more = |sum: &mut Amount, more: Amount| {
        sum.blocks += more.blocks;
        sum.bytes += more.bytes;
    };
    (sum.revision, sum.generation) = (done.revision, done.generation);
    more(&mut sum.asked, done.asked);
    more(&mut sum.there, done.there);
    more(&mut sum.fetched, done.fetched);
    more(&mut sum.no_room, done.no_room);
    more(&mut sum.failed, done.failed);
}

#[pymethods]
impl Prefetch {
    /// Ends it. What the daemon is reading arrives.
    fn cancel(&self) {
        if let Ok(under) = self.0.get() {
            under.task.abort();
        }
    }

    /// Whether it is over.
    fn done(&self, py: Python<'_>) -> PyResult<bool> {
        let under = self.0.get().map_err(|failure| failure.raise(py))?;
        Ok(under.task.is_finished())
    }

    /// Waits for its end, at most `timeout` seconds, and returns what became of it: a dict of
    /// `asked`, `there`, `fetched`, `no_room` and `failed`, each with `blocks` and `bytes`.
    /// Raises what the daemon said, `TpadError` when it was cancelled, `DeadlineExceeded`.
    #[pyo3(signature = (timeout = None, done = None))]
    fn wait(
        &self,
        py: Python<'_>,
        timeout: Option<f64>,
        done: Option<Py<PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let under = self.0.get().map_err(|failure| failure.raise(py))?;
        let mut outcome = under.outcome.clone();
        let limit = limit(timeout)?.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
        let end = async move {
            let came = tokio::time::timeout(limit, outcome.wait_for(Option::is_some)).await;
            let Ok(came) = came else {
                let text = format!("the prefetch goes on after {} s", limit.as_secs_f64());
                return Err(Failure::said("deadline_exceeded", text));
            };
            let Ok(came) = came else {
                return Err(Failure::said("cancelled", "the prefetch was cancelled"));
            };
            Ok(came.clone())
        };
        run(py, done, end, |py, outcome| match outcome {
            Some(Ok(sum)) => json(py, &sum),
            Some(Err(error)) => Err(Failure::Shared(error).raise(py)),
            None => Ok(py.None()),
        })
    }
}
