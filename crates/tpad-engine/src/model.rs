//! One model: what it serves, and the task that loads it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tracing::Instrument as _;

use crate::generation::{Generation, Shared};
use crate::load::{LoadError, load};
use crate::{BudgetEnforcement, EngineError, ModelConfig, RetryIntervals};

/// A configured model.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    serving: ArcSwapOption<Generation>,
    /// Why the last attempt failed; `None` before the first ends and after a
    /// success.
    failure: Mutex<Option<Failure>>,
}

/// Why an attempt to load a model failed.
#[derive(Debug)]
struct Failure {
    reason: String,
    /// What makes it news: [`LoadError::topic`].
    topic: String,
}

/// Whether a model can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// Its manifest is being read for the first time.
    Loading,
    /// It can be read.
    Serving,
    /// It could not be loaded; it is tried again.
    Failed,
}

/// A model as it is now.
#[derive(Clone, Debug)]
pub struct ModelView {
    /// The name that requests use.
    pub name: String,
    /// Its root as configured, without any password in it.
    pub root: String,
    /// Whether it can be read.
    pub state: ModelState,
    /// Why the last attempt to load it failed, if it did. A model that serves
    /// has one when a newer revision was refused.
    pub reason: Option<String>,
    /// Why what it serves may be older than what the store has.
    pub stale: Option<String>,
    /// What it serves.
    pub generation: Option<Arc<Generation>>,
}

/// What the loading task needs besides its model.
pub(crate) struct Loader {
    pub(crate) enforcement: BudgetEnforcement,
    pub(crate) retry: RetryIntervals,
    pub(crate) shared: Shared,
}

impl Model {
    pub(crate) fn new(config: ModelConfig) -> Self {
        Self { config, serving: ArcSwapOption::empty(), failure: Mutex::new(None) }
    }

    /// What the model serves; whoever reads holds it from start to end.
    pub(crate) fn open(&self) -> Result<Arc<Generation>, EngineError> {
        if let Some(generation) = self.serving.load_full() {
            return Ok(generation);
        }
        let model = self.config.name.clone();
        Err(match self.reason() {
            None => EngineError::ModelLoading { model },
            Some(reason) => EngineError::ModelFailed { model, reason },
        })
    }

    pub(crate) fn view(&self) -> ModelView {
        let generation = self.serving.load_full();
        let reason = self.reason();
        let state = match (&generation, &reason) {
            (Some(_), _) => ModelState::Serving,
            (None, None) => ModelState::Loading,
            (None, Some(_)) => ModelState::Failed,
        };
        let root = without_password(&self.config.root);
        let name = self.config.name.clone();
        ModelView { name, root, state, reason, stale: None, generation }
    }

    /// Loads the model, again and again until it works or the engine stops.
    pub(crate) async fn run(
        self: Arc<Self>,
        loader: Loader,
        number: impl Fn() -> u64 + Send + Sync,
        changed: impl Fn() + Send,
    ) {
        let span = tracing::info_span!("load", model = %self.config.name);
        let work = async {
            let mut pause = loader.retry.first;
            loop {
                let attempt = load(&self.config, loader.enforcement, &number, &loader.shared);
                let result = tokio::select! {
                    () = loader.shared.stop.cancelled() => return,
                    result = attempt => result,
                };
                match result {
                    Ok(generation) => {
                        self.swap(generation, &loader.shared);
                        changed();
                        return;
                    }
                    Err(error) => self.failed(&error, pause, &loader.shared),
                }
                changed();
                tokio::select! {
                    () = loader.shared.stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = pause.saturating_mul(2).min(loader.retry.longest);
            }
        };
        work.instrument(span).await;
    }

    fn swap(&self, generation: Generation, shared: &Shared) {
        let (revision, number) = (generation.revision(), generation.number());
        for warning in generation.warnings() {
            tracing::warn!(warning, "odd manifest");
        }
        for tier in &generation.manifest().tiers {
            if let Some(reason) = generation.catalog().skipped(&tier.id) {
                tracing::warn!(tier = %tier.id, reason, "tier skipped");
            }
        }
        self.serving.store(Some(Arc::new(generation)));
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        shared.metrics.loaded(&self.config.name, revision, number);
        tracing::info!(revision, generation = number, "model loaded");
    }

    fn failed(&self, error: &LoadError, pause: Duration, shared: &Shared) {
        shared.metrics.failed(&self.config.name);
        let (reason, topic) = (error.to_string(), error.topic());
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // Once for each topic, not once for each attempt.
        if failure.as_ref().is_none_or(|known| known.topic != topic) {
            tracing::warn!(reason, retry_seconds = pause.as_secs_f64(), "model not loaded");
        }
        *failure = Some(Failure { reason, topic });
    }

    fn reason(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().map(|failure| failure.reason.clone())
    }
}

/// A URL without the user and password that it may carry.
fn without_password(root: &str) -> String {
    let Some((scheme, rest)) = root.split_once("://") else { return root.into() };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{host}{path}"),
        None => root.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_shows_no_password() {
        assert_eq!(without_password("https://u:p@host/a@b"), "https://host/a@b");
        assert_eq!(without_password("s3://bucket/a@b"), "s3://bucket/a@b");
        assert_eq!(without_password("/data/a@b"), "/data/a@b");
    }
}
