//! Models that are loaded and unloaded while the engine runs.
//!
//! What is done here lasts as long as the process: the next start has the
//! configuration's models again.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use tpad_store::OriginOptions;

use super::Engine;
use crate::generation::Generation;
use crate::model::{Attempt, Model, Wish};
use crate::{EngineError, ModelConfig, Target};

/// Models at a time: their names are labels of metrics, and each keeps index
/// segments in memory.
const MODELS: usize = 256;

/// What a request to load a model came to.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the model serves now.
    pub generation: Arc<Generation>,
    /// What happened to it.
    pub outcome: LoadOutcome,
}

/// What loading did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadOutcome {
    /// The model served nothing before.
    Loaded,
    /// The model serves another generation than before.
    Reloaded,
    /// Its root has nothing else than what it serves.
    Unchanged,
}

/// What unloading a model ended.
#[derive(Clone, Debug)]
pub struct Unloaded {
    /// What it served last; readers may hold it still. `None` when it could not
    /// be loaded.
    pub generation: Option<Arc<Generation>>,
}

impl Engine {
    /// [`Engine::reload_to`] what the model stays on or its root names.
    ///
    /// # Errors
    /// As there.
    pub async fn reload(&self, name: &str, deadline: Instant) -> Result<Loaded, EngineError> {
        self.reload_to(name, Target::Known, deadline).await
    }

    /// Loads a model again, now: a newer revision, what failed before, or the
    /// revision that `target` names is picked up. Tiers that it adds are brought
    /// home first, as far as the deadline allows. Readers keep the generation that
    /// they have. What is served stays when this fails or is dropped.
    ///
    /// # Errors
    /// When there is no such model, it cannot be loaded, or not in time.
    pub async fn reload_to(
        &self,
        name: &str,
        target: Target,
        deadline: Instant,
    ) -> Result<Loaded, EngineError> {
        let model = self.model(name)?;
        let served = model.open().is_ok();
        let attempt = self.attempt(&model, target, deadline).await;
        if let Err(EngineError::Load { .. }) = &attempt {
            self.publish_readiness();
        }
        let (generation, swapped) = attempt?;
        self.publish_readiness();
        let outcome = match (swapped, served) {
            (_, false) => LoadOutcome::Loaded,
            (false, true) => LoadOutcome::Unchanged,
            (true, true) => LoadOutcome::Reloaded,
        };
        Ok(Loaded { generation, outcome })
    }

    /// Adds a model once it is loaded; nothing is added when that fails or is
    /// dropped.
    ///
    /// # Errors
    /// When there is a model of that name, there are too many, or it cannot be
    /// loaded in time.
    pub async fn add(&self, config: ModelConfig, deadline: Instant) -> Result<Loaded, EngineError> {
        if self.stop.is_cancelled() {
            return Err(EngineError::Stopping);
        }
        let alone = timeout_at(deadline, self.adding.lock()).await;
        let _alone = alone.map_err(|_| too_late())?;
        if let Some(known) = self.models.find(&config.name) {
            return Err(taken(&known));
        }
        if self.models.len() >= MODELS {
            return Err(EngineError::TooManyModels { limit: MODELS });
        }
        let model = Arc::new(Model::new(config, &self.stop));
        let (generation, _) =
            self.attempt(&model, Target::Known, deadline).await.inspect_err(|_| {
                self.loader.shared.metrics.unloaded(&model.config.name);
            })?;
        self.drive(&model);
        self.models.add(model);
        self.publish_readiness();
        Ok(Loaded { generation, outcome: LoadOutcome::Loaded })
    }

    /// How a model's root is reached, for another that is to be reached alike.
    ///
    /// # Errors
    /// When there is no such model.
    pub fn origin_of(&self, name: &str) -> Result<OriginOptions, EngineError> {
        Ok(self.model(name)?.config.origin.clone())
    }

    /// Ends a model: it is not found any more, its tasks and pins end. Whoever
    /// reads it reads on. Its blocks stay where they are until others need the room.
    ///
    /// # Errors
    /// When there is no such model.
    pub async fn unload(&self, name: &str) -> Result<Unloaded, EngineError> {
        let removed = self.models.remove(name);
        let model = removed.ok_or_else(|| self.unknown(name))?;
        let generation = model.end().await;
        if let Some(generation) = &generation {
            self.loader.shared.devices.forget_uses(generation);
        }
        self.pins.remove_model(name);
        self.loader.shared.metrics.unloaded(name);
        self.publish_readiness();
        let revision = generation.as_deref().map(Generation::revision);
        tracing::info!(model = name, revision, "model unloaded");
        Ok(Unloaded { generation })
    }

    /// One attempt; whether it swapped.
    async fn attempt(
        &self,
        model: &Model,
        target: Target,
        deadline: Instant,
    ) -> Result<(Arc<Generation>, bool), EngineError> {
        let wish = Wish::Reload(target, deadline);
        let attempt = timeout_at(deadline, model.attempt(&self.loader, wish)).await;
        match attempt {
            Ok(Ok(Attempt::Swapped(generation))) => Ok((generation, true)),
            Ok(Ok(Attempt::Same(generation))) => Ok((generation, false)),
            Ok(Ok(Attempt::Ended)) if self.stop.is_cancelled() => Err(EngineError::Stopping),
            Ok(Ok(Attempt::Ended)) => Err(self.unknown(&model.config.name)),
            Ok(Err(error)) => {
                model.not_reloaded(&error, &self.loader.shared);
                Err(EngineError::Load {
                    model: model.config.name.clone(),
                    kind: error.kind(),
                    reason: error.to_string(),
                })
            }
            Ok(Ok(Attempt::GaveWay)) | Err(_) => Err(too_late()),
        }
    }
}

fn too_late() -> EngineError {
    EngineError::Deadline { what: "the model was loaded".into() }
}

fn taken(known: &Model) -> EngineError {
    let view = known.view();
    EngineError::ModelExists { model: view.name, root: view.root }
}
