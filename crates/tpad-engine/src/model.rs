//! One model: what it serves, and the task that loads it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::generation::{Generation, Shared};
use crate::load::{LoadError, check_succession, load};
use crate::locate::Place;
use crate::{BudgetEnforcement, EngineError, ModelConfig, RetryIntervals};

/// A model: configured, or added at run time.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    serving: ArcSwapOption<Generation>,
    /// Why the last attempt failed; `None` before the first ends and after a
    /// success.
    failure: Mutex<Option<Failure>>,
    /// One attempt at a time, so that an older one never replaces a newer.
    loading: tokio::sync::Mutex<()>,
    /// The model goes: nothing is loaded any more.
    end: CancellationToken,
    /// What works for this model alone and has to end with it.
    tasks: TaskTracker,
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
    /// Whether it stays on its revision whatever its root says.
    pub pinned: bool,
}

/// What loading needs besides the model.
#[derive(Clone)]
pub(crate) struct Loader {
    pub(crate) enforcement: BudgetEnforcement,
    /// How often roots are looked at.
    pub(crate) follow: Option<Duration>,
    pub(crate) retry: RetryIntervals,
    pub(crate) shared: Shared,
    /// Counts generations over all models.
    pub(crate) swaps: Arc<AtomicU64>,
}

/// What an attempt to load a model came to.
#[derive(Debug)]
pub(crate) enum Attempt {
    /// This is served from now on.
    Swapped(Arc<Generation>),
    /// This is served already, from the same document.
    Same(Arc<Generation>),
    /// The model or the engine ends.
    Ended,
}

impl Model {
    pub(crate) fn new(config: ModelConfig, engine_stop: &CancellationToken) -> Self {
        Self {
            config,
            serving: ArcSwapOption::empty(),
            failure: Mutex::new(None),
            loading: tokio::sync::Mutex::new(()),
            end: engine_stop.child_token(),
            tasks: TaskTracker::new(),
        }
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
        let stale = generation.as_ref().and_then(|generation| generation.stale());
        let pinned = Place::of(&self.config.root).pinned.is_some();
        ModelView { name, root, state, reason, stale, generation, pinned }
    }

    /// Loads the model, and follows its root until the model ends.
    pub(crate) async fn run(self: Arc<Self>, loader: Loader, changed: impl Fn() + Send) {
        self.settle(&loader, &changed).await;
        if let Some(interval) = loader.follow {
            self.follow(&loader, interval, &changed).await;
        }
    }

    /// Loads the model, again and again until what it serves is the store's,
    /// someone else has done it, or the model ends.
    async fn settle(&self, loader: &Loader, changed: &(impl Fn() + Send)) {
        let mut pause = loader.retry.first;
        while !self.settled() {
            match self.attempt(loader).await {
                Ok(_) => changed(),
                Err(error) => {
                    self.failed(&error, pause, &loader.shared, "model not loaded");
                    changed();
                }
            }
            if self.settled() {
                return;
            }
            tokio::select! {
                () = self.end.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = pause.saturating_mul(2).min(loader.retry.longest);
        }
    }

    /// Whether it serves what the store has.
    fn settled(&self) -> bool {
        self.serving.load().as_ref().is_some_and(|generation| generation.stale().is_none())
    }

    /// Loads the model once. What is served stays when that fails, and when the
    /// root has the same document still. Dropping the future gives the attempt
    /// up.
    pub(crate) async fn attempt(&self, loader: &Loader) -> Result<Attempt, LoadError> {
        let span = tracing::info_span!("load", model = %self.config.name);
        let attempt = async {
            let _alone = self.loading.lock().await;
            let number = || loader.swaps.fetch_add(1, Ordering::Relaxed) + 1;
            // Who serves something already learns that the store is away.
            let kept = self.serving.load().is_none();
            let loaded =
                load(&self.config, loader.enforcement, number, kept, &loader.shared).await?;
            if let Some(serving) = self.serving.load_full() {
                check_succession(&serving, &loaded).await?;
            }
            if self.end.is_cancelled() {
                return Ok(Attempt::Ended);
            }
            Ok(self.swap(loaded, &loader.shared))
        };
        tokio::select! {
            biased;
            () = self.end.cancelled() => Ok(Attempt::Ended),
            attempt = attempt.instrument(span) => attempt,
        }
    }

    /// Ends the model: its tasks, its loading, and what it serves. Whoever reads
    /// a generation keeps it. `None` when it served nothing.
    pub(crate) async fn end(&self) -> Option<Arc<Generation>> {
        self.end.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let last = self.serving.swap(None);
        if let Some(generation) = &last {
            generation.retire();
        }
        last
    }

    /// Runs `task` as the model's own: [`Model::end`] waits for it.
    pub(crate) fn track<F: Future>(&self, task: F) -> impl Future<Output = F::Output> + use<F> {
        self.tasks.track_future(task)
    }

    fn swap(&self, generation: Generation, shared: &Shared) -> Attempt {
        let (revision, number) = (generation.revision(), generation.number());
        let known = self.serving.load_full();
        let same = known.filter(|known| known.says_the_same(&generation));
        let attempt = match same {
            Some(known) => {
                if generation.stale().is_none() && known.confirm(&generation) {
                    tracing::info!(revision, "the store answers: it has the same revision");
                }
                Attempt::Same(known)
            }
            None => {
                for warning in generation.warnings() {
                    tracing::warn!(warning, "odd manifest");
                }
                for tier in &generation.manifest().tiers {
                    if let Some(reason) = generation.catalog().skipped(&tier.id) {
                        tracing::warn!(tier = %tier.id, reason, "tier skipped");
                    }
                }
                if let Some(reason) = generation.stale() {
                    tracing::warn!(reason, "the store is away: the last good revision is served");
                }
                let generation = Arc::new(generation);
                if let Some(old) = self.serving.swap(Some(Arc::clone(&generation))) {
                    old.retire();
                }
                shared.metrics.loaded(&self.config.name, revision, number);
                tracing::info!(revision, generation = number, "model loaded");
                Attempt::Swapped(generation)
            }
        };
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
        attempt
    }

    /// A reload that failed: what is served stays, and the status says why.
    pub(crate) fn not_reloaded(&self, error: &LoadError, shared: &Shared) {
        shared.metrics.failed(&self.config.name);
        let failure = Failure { reason: error.to_string(), topic: error.topic() };
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
    }

    pub(crate) fn failed(&self, error: &LoadError, pause: Duration, shared: &Shared, what: &str) {
        shared.metrics.failed(&self.config.name);
        let (reason, topic) = (error.to_string(), error.topic());
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // Once for each topic, not once for each attempt.
        if failure.as_ref().is_none_or(|known| known.topic != topic) {
            let (model, retry_seconds) = (&self.config.name, pause.as_secs_f64());
            tracing::warn!(model, reason, retry_seconds, "{what}");
        }
        *failure = Some(Failure { reason, topic });
    }

    /// What was wrong is over. Says whether anything was.
    pub(crate) fn recovered(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Until the model ends.
    pub(crate) async fn ended(&self) {
        self.end.cancelled().await;
    }

    /// What the model serves, if it does.
    pub(crate) fn serving(&self) -> Option<Arc<Generation>> {
        self.serving.load_full()
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
