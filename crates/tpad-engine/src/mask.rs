//! Routing masks by model, and how to hear of their changes.

use tokio::sync::watch;
use tokio::time::Instant;
use tpad_manifest::{CostClass, RoutingMask, TierSet};

use crate::{Engine, EngineError};

/// What a mask is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MaskRequest {
    /// The tiers that shall be active.
    pub set: TierSet,
    /// Whether to say where experts came from, which reads the tiers' indexes.
    pub sources: bool,
    /// Whether to say where blocks are.
    pub resident: Option<Residency>,
}

/// Up to which level blocks count as resident, and where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residency {
    /// The slowest level that counts.
    pub level: CostClass,
    /// These layers; empty: all.
    pub layers: Vec<u32>,
}

/// A mask and the generation that it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationMask {
    /// The daemon's count of swaps.
    pub generation: u64,
    /// The mask.
    pub mask: RoutingMask,
}

impl Engine {
    /// A model's routing mask. Has no effect on the caches of blocks.
    ///
    /// # Errors
    /// When the model is not served, there is no such TierSet, nothing is left
    /// to route to, the mask is too large for one reply, or an index segment
    /// that it needs cannot be read.
    pub async fn mask(
        &self,
        model: &str,
        request: &MaskRequest,
        deadline: Instant,
    ) -> Result<GenerationMask, EngineError> {
        let generation = self.open(model)?;
        let model = self.model(model)?;
        let mask = generation.mask(request, &model.config.tier_sets, deadline).await?;
        Ok(GenerationMask { generation: generation.number(), mask })
    }

    /// Tells when a model was loaded, replaced, unloaded or failed to load: what
    /// was computed of it may be another now.
    #[must_use]
    pub fn watch_models(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
