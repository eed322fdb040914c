//! The engine: its models, the hierarchy below them, and their tasks.

mod administer;
mod keep;
mod roster;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_store::{Hierarchy, Level, NvmeLevel, StoreError, StoreMetrics, Tasks};

pub use self::administer::{LoadOutcome, Loaded, Unloaded};
pub use self::keep::{Evictions, Pinned};
use self::roster::Roster;
use crate::generation::{Generation, Shared};
use crate::kept::Kept;
use crate::leases::Leases;
use crate::model::{Loader, Model, ModelView};
use crate::pins::Pins;
use crate::placement::{Levels, keep_placing};
use crate::{
    DeviceMemory, EngineConfig, EngineError, EngineMetrics, ModelStatus, ProcessStatus, Readiness,
    ReadyWhen, Status, Worker, WorkerName,
};

/// Documents and index segments checked at a time: BLAKE3 and the bounds of a million records
/// keep a core busy for a tenth of a second.
const CHECKS_AT_ONCE: usize = 2;

/// Files read at a time: workers ask for them once, at their start.
const FILES_AT_ONCE: usize = 2;

/// Loads models and reads their blocks. Stops its tasks in
/// [`Engine::shutdown`].
pub struct Engine {
    /// For its tasks: an engine that is dropped without a shutdown goes.
    me: Weak<Self>,
    models: Roster,
    /// One model is added at a time.
    adding: tokio::sync::Mutex<()>,
    loader: Loader,
    hierarchy: Arc<Hierarchy>,
    levels: Levels,
    ready_when: ReadyWhen,
    /// Prefetches that read.
    pub(crate) prefetches: Arc<Semaphore>,
    pins: Arc<Pins>,
    leases: Arc<Leases>,
    started: Instant,
    readiness: watch::Sender<Readiness>,
    /// Counts what happened to models.
    pub(crate) changes: watch::Sender<u64>,
    /// Readiness is over, and stays so.
    draining: AtomicBool,
    /// Ends every task; also when the engine is dropped without a shutdown.
    stop: CancellationToken,
    tasks: Tasks,
}

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Two models have one name.
    #[error("two models are called {0:?}")]
    DuplicateModel(String),
    /// The store does not start.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Engine {
    /// Starts the store and one task for each model, which loads it and tries
    /// again while that fails. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// When names repeat or the store cannot be set up. A model that cannot be
    /// loaded is no error: its status says so.
    pub fn start(
        config: EngineConfig,
        metrics: EngineMetrics,
        store_metrics: StoreMetrics,
    ) -> Result<Arc<Self>, StartError> {
        let EngineConfig {
            models,
            store,
            nvme,
            devices,
            budget_enforcement,
            ready_when,
            follow,
            swap_patience,
            retry,
            leases,
            bounds,
        } = config;
        let divided = !store.dram.class_budgets.is_empty();
        let mut names = BTreeSet::new();
        if let Some(twice) = models.iter().find(|model| !names.insert(model.name.clone())) {
            return Err(StartError::DuplicateModel(twice.name.clone()));
        }
        let nvme = nvme.map(|nvme| NvmeLevel::open(nvme, store_metrics.clone())).transpose()?;
        let lower = nvme.iter().map(|level| Arc::clone(level) as Arc<dyn Level>).collect();
        let hierarchy = Hierarchy::new(store, lower, store_metrics.clone())?;
        if let Some(host) = devices.level().and_then(|level| level.host_memory()) {
            // Nothing lies there yet.
            hierarchy.dram().arena().observe(host);
        }
        let kept = Kept::on(nvme.as_ref().map(|level| level.documents()));
        let (stop, tasks) = (CancellationToken::new(), Tasks::new());
        let shared = Shared {
            hierarchy: Arc::clone(&hierarchy),
            devices: devices.clone(),
            store_metrics,
            metrics,
            bounds,
            tasks: tasks.clone(),
            stop: stop.clone(),
            selections: Arc::new(Semaphore::new(bounds.selected_blocks_in_flight)),
            checks: Arc::new(Semaphore::new(CHECKS_AT_ONCE)),
            file_reads: Arc::new(Semaphore::new(FILES_AT_ONCE)),
            kept,
        };
        let pins = Pins::new(Arc::clone(&hierarchy), shared.metrics.clone());
        let leases = Leases::new(
            leases,
            Arc::clone(&hierarchy),
            devices.level().cloned(),
            shared.metrics.clone(),
        );
        let levels = Levels { hierarchy: Arc::clone(&hierarchy), nvme, devices, divided };
        tasks.spawn(Arc::clone(&pins).expire(stop.clone()));
        let loader = Loader {
            enforcement: budget_enforcement,
            follow,
            retry,
            swap_patience,
            shared,
            changes: watch::Sender::new(0),
            swaps: Arc::default(),
        };
        let models = models.into_iter().map(|model| Arc::new(Model::new(model, &stop)));
        let models: Vec<Arc<Model>> = models.collect();
        let views: Vec<ModelView> = models.iter().map(|model| model.view()).collect();
        let (readiness, _) = watch::channel(Readiness::of(&views, ready_when));
        let engine = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            models: Roster::new(models.clone()),
            adding: tokio::sync::Mutex::new(()),
            changes: loader.changes.clone(),
            loader,
            levels: levels.clone(),
            ready_when,
            prefetches: crate::prefetch::turns(),
            hierarchy,
            pins,
            leases,
            started: Instant::now(),
            readiness,
            draining: AtomicBool::new(false),
            stop,
            tasks: tasks.clone(),
        });
        models.iter().for_each(|model| engine.drive(model));
        let changes = engine.changes.subscribe();
        let weak = Arc::downgrade(&engine);
        tasks.spawn(keep_placing(weak, levels, changes, engine.stop.clone()));
        tasks.close();
        Ok(engine)
    }

    /// What the model serves now. Whoever reads holds it from start to end.
    ///
    /// # Errors
    /// When there is no such model or it is not loaded.
    pub fn open(&self, model: &str) -> Result<Arc<Generation>, EngineError> {
        if self.stop.is_cancelled() {
            return Err(EngineError::Stopping);
        }
        self.model(model)?.open()
    }

    /// The model as it is now, loaded or not.
    ///
    /// # Errors
    /// When there is no such model.
    pub fn view(&self, model: &str) -> Result<ModelView, EngineError> {
        Ok(self.model(model)?.view())
    }

    /// All models: the configuration's in its order, then those added since.
    #[must_use]
    pub fn models(&self) -> Vec<ModelView> {
        self.models.views()
    }

    /// The engine's state as one document.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: self.ready().is_ready(),
            process: ProcessStatus::now(),
            models: self
                .models()
                .into_iter()
                .map(|model| ModelStatus::of(model, &self.levels))
                .collect(),
            pinned: self.pins.held(),
            pins: self.pins.status(),
            leases: self.leases.status(),
            hbm: self.levels.devices.status(),
            store: self.hierarchy.status(),
        }
    }

    /// Whether requests can be answered.
    #[must_use]
    pub fn ready(&self) -> Readiness {
        self.readiness.borrow().clone()
    }

    /// A worker of this machine, which holds no lease yet; `directories` if it wants to
    /// hold blocks without asking for each.
    #[must_use]
    pub fn worker(&self, name: WorkerName, directories: bool) -> Worker {
        self.leases.worker(name, directories)
    }

    /// The GPUs on which blocks can be acquired, by UUID.
    #[must_use]
    pub fn devices(&self) -> Vec<String> {
        let level = self.levels.devices.level();
        let devices = level.into_iter().flat_map(|level| level.devices());
        devices.map(|facts| facts.uuid.to_string()).collect()
    }

    /// GPU memory.
    #[must_use]
    pub fn device_memory(&self) -> &DeviceMemory {
        &self.levels.devices
    }

    /// Another number after each start: what is shared with workers belongs to one.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.leases.epoch()
    }

    /// Looks after what workers do without a message. To be called every 100 ms as long
    /// as there are any.
    pub fn tend_workers(&self) {
        self.leases.tend();
    }

    /// Tells when readiness changes.
    #[must_use]
    pub fn watch_readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }

    /// The levels below.
    #[must_use]
    pub fn hierarchy(&self) -> &Arc<Hierarchy> {
        &self.hierarchy
    }

    /// From here on the engine says that it is not ready, so that no new work
    /// is sent to it. What comes is still answered.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.readiness.send_replace(Readiness::NotReady("draining".into()));
    }

    /// Ends all tasks and waits for them. Requests in progress fail with
    /// [`EngineError::Stopping`] where they need what is not there yet.
    pub async fn shutdown(&self) {
        self.drain();
        self.stop.cancel();
        // Who waits for news of a model holds the engine, and hears of its end
        // like this alone.
        self.loader.changed();
        self.tasks.wait().await;
        self.hierarchy.shutdown().await;
        if let Some(level) = self.levels.devices.level() {
            level.close().await;
        }
    }

    pub(crate) fn model(&self, name: &str) -> Result<Arc<Model>, EngineError> {
        self.models.find(name).ok_or_else(|| self.unknown(name))
    }

    /// Loads a model and follows its root in a task of its own.
    fn drive(&self, model: &Arc<Model>) {
        let me = Weak::clone(&self.me);
        let changed = move || {
            if let Some(engine) = me.upgrade() {
                engine.publish_readiness();
            }
        };
        let run = Arc::clone(model).run(self.loader.clone(), changed);
        self.tasks.spawn(model.track(run));
    }

    fn unknown(&self, name: &str) -> EngineError {
        EngineError::UnknownModel {
            model: name.chars().take(200).collect(),
            known: self.models.names(),
        }
    }

    /// To be called when a model was loaded, replaced, unloaded, brought home or
    /// failed.
    pub(crate) fn publish_readiness(&self) {
        self.loader.changed();
        let models = self.models();
        self.readiness.send_if_modified(|known| {
            // Whoever was ready serves: another model or revision that is still
            // brought home takes nothing from it.
            let when = if known.is_ready() { ReadyWhen::Loaded } else { self.ready_when };
            let now = Readiness::of(&models, when);
            // A model that loads late must not call a draining engine ready.
            let changed = *known != now && !self.draining.load(Ordering::Acquire);
            if changed {
                *known = now;
            }
            changed
        });
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("models", &self.models).finish_non_exhaustive()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[cfg(test)]
mod tests;
