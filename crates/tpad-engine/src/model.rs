//! One model: what it serves, and the task that loads it.

mod arrival;
mod attempt;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::attempt::{Attempt, Wish};
use crate::generation::{Generation, Shared};
use crate::load::LoadError;
use crate::locate::Place;
use crate::{BudgetEnforcement, EngineError, ModelConfig, RetryIntervals};

/// A model: configured, or added at run time.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    serving: ArcSwapOption<Generation>,
    /// What is about to be served, while its added tiers are brought home.
    coming: ArcSwapOption<Generation>,
    /// The revision that somebody chose for this daemon alone.
    chosen: Mutex<Option<u64>>,
    /// Why the last attempt failed; `None` before the first ends and after a
    /// success.
    failure: Mutex<Option<Failure>>,
    /// One attempt at a time, so that an older one never replaces a newer.
    loading: tokio::sync::Mutex<()>,
    /// A reload was asked for: whoever only waits makes way.
    asked: Notify,
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
    /// What it is about to serve, once its added tiers are at home.
    pub coming: Option<Arc<Generation>>,
    /// Whether it stays on its revision whatever its root says.
    pub pinned: bool,
}

/// Which revision a reload is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The one that the model stays on, or else what its root names.
    #[default]
    Known,
    /// This one, on which the model stays from then on.
    Revision(u64),
    /// What the configured root names, which is followed from then on.
    Root,
}

/// What loading needs besides the model.
#[derive(Clone)]
pub(crate) struct Loader {
    pub(crate) enforcement: BudgetEnforcement,
    /// How often roots are looked at.
    pub(crate) follow: Option<Duration>,
    pub(crate) retry: RetryIntervals,
    /// How long added tiers may take to come home before a swap.
    pub(crate) swap_patience: Duration,
    pub(crate) shared: Shared,
    /// Counts what happened to models.
    pub(crate) changes: watch::Sender<u64>,
    /// Counts generations over all models.
    pub(crate) swaps: Arc<AtomicU64>,
}

impl Loader {
    /// Something happened to a model.
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|changes| *changes = changes.wrapping_add(1));
    }
}

impl Model {
    pub(crate) fn new(config: ModelConfig, engine_stop: &CancellationToken) -> Self {
        Self {
            config,
            serving: ArcSwapOption::empty(),
            coming: ArcSwapOption::empty(),
            chosen: Mutex::default(),
            failure: Mutex::new(None),
            loading: tokio::sync::Mutex::new(()),
            asked: Notify::new(),
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
        let (coming, pinned) = (self.coming.load_full(), self.is_pinned());
        ModelView { name, root, state, reason, stale, generation, coming, pinned }
    }

    /// Whether the model stays on a revision whatever its root says.
    pub(crate) fn is_pinned(&self) -> bool {
        self.place(Target::Known).pinned.is_some()
    }

    fn place(&self, target: Target) -> Place {
        let mut place = Place::of(&self.config.root);
        match target {
            Target::Known => {
                let chosen = *self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
                place.pinned = chosen.or(place.pinned);
            }
            Target::Revision(revision) => place.pinned = Some(revision),
            Target::Root => {}
        }
        place
    }

    /// A reload succeeded: the model stays on its revision, or follows its root.
    fn choose(&self, target: Target) {
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        match target {
            Target::Known => {}
            Target::Revision(revision) => *chosen = Some(revision),
            Target::Root => *chosen = None,
        }
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
            match self.attempt(loader, Wish::Look).await {
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
