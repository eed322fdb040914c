//! Pins and evictions: what an operator or a worker wants kept, and given up.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio::time::Instant;
use tpad_manifest::BlockId;
use tpad_store::{Medium, ReadOptions};

use super::Engine;
use crate::generation::{Generation, ScopedBlock};
use crate::pins::{LONGEST_PIN, PinKey, Totals};
use crate::{EngineError, Scope};

/// Blocks read at a time for one pin: enough to hide a store's latency, few
/// enough to leave others theirs.
const READS_AT_ONCE: usize = 8;

/// What pinning did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// What the pin holds.
    pub held: Totals,
    /// The revision whose blocks they are.
    pub revision: u64,
    /// It took the place of the same owner's pin of the same scope.
    pub renewed: bool,
}

/// What evicting did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// Given up in GPU memory, each block once however many devices had it.
    pub hbm: Totals,
    /// Given up in host memory.
    pub dram: Totals,
    /// Given up on disk.
    pub nvme: Totals,
    /// Left alone, since someone has pinned them.
    pub pinned: Totals,
}

impl Engine {
    /// Reads a scope's blocks into host memory and keeps them there for `owner`
    /// until `ttl` is over, the owner unpins them, or the model is unloaded. The
    /// same owner's pin of the same scope is renewed.
    ///
    /// # Errors
    /// When the scope names what does not exist, its blocks cannot be read in
    /// time, or pins may not hold as much. Nothing is pinned then that was not.
    pub async fn pin(
        &self,
        name: &str,
        owner: &str,
        scope: Scope,
        ttl: Duration,
        deadline: Instant,
    ) -> Result<Pinned, EngineError> {
        let model = self.model(name)?;
        let generation = model.open()?;
        let key = PinKey { owner: owner.to_owned(), model: name.to_owned(), scope };
        self.pins.check_count(&key)?;
        let blocks = generation.scope(&key.scope, deadline).await?;
        let mut hold = self.pins.reserve(blocks.iter().map(|block| (block.id, block.bytes)))?;
        let options = ReadOptions::demand(deadline);
        let reads = blocks.into_iter().map(|block| {
            let generation = Arc::clone(&generation);
            async move {
                let (_, class, served) = generation.fetch(&block.key, options).await?;
                Ok::<_, EngineError>((block, class, served))
            }
        });
        let mut reads = futures::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
        while let Some((block, class, served)) = reads.try_next().await? {
            if !hold.hold(&block.id, &class, &served.bytes) {
                return Err(EngineError::PinRefused { key: block.key });
            }
        }
        drop(reads);
        let (held, revision) = (hold.totals(), generation.revision());
        let expires = Instant::now() + ttl.min(LONGEST_PIN);
        let renewed = self.pins.keep(key.clone(), hold, revision, expires)?;
        // Unloaded in between: nobody else would end the pin before its time.
        if !self.models.find(name).is_some_and(|now| Arc::ptr_eq(&now, &model)) {
            self.pins.remove(|pin| *pin == key);
            return Err(self.unknown(name));
        }
        Ok(Pinned { held, revision, renewed })
    }

    /// Ends an owner's pins of a model: those of `scope`, or all. Returns how many
    /// they were and what they held, blocks of several pins counted for each.
    ///
    /// # Errors
    /// When there is none.
    pub fn unpin(
        &self,
        name: &str,
        owner: &str,
        scope: Option<&Scope>,
    ) -> Result<(u64, Totals), EngineError> {
        let (count, held) = self.pins.remove(|pin| {
            let this = pin.model == name && pin.owner == owner;
            this && scope.is_none_or(|scope| pin.scope == *scope)
        });
        if count == 0 {
            let owner = owner.chars().take(128).collect();
            return Err(EngineError::UnknownPin { owner });
        }
        Ok((count, held))
    }

    /// Has one level, or every one, forget a scope's blocks. Pinned ones stay, and
    /// whoever reads one reads on.
    ///
    /// # Errors
    /// When the scope names what does not exist, or its index cannot be read.
    pub async fn evict(
        &self,
        name: &str,
        scope: &Scope,
        level: Option<Medium>,
        deadline: Instant,
    ) -> Result<Evictions, EngineError> {
        let generation = self.open(name)?;
        let mut evictions = Evictions::default();
        for ScopedBlock { id, bytes, .. } in generation.scope(scope, deadline).await? {
            if level.is_none_or(|level| level == Medium::Hbm) && self.evict_from_devices(&id) {
                evictions.hbm.add(bytes);
            }
            if level == Some(Medium::Hbm) {
                continue;
            }
            let evicted = self.hierarchy.evict(&id, level).await;
            if evicted.pinned {
                evictions.pinned.add(bytes);
            }
            for medium in evicted.from {
                match medium {
                    Medium::Dram => evictions.dram.add(bytes),
                    Medium::Nvme => evictions.nvme.add(bytes),
                    Medium::Hbm | Medium::ObjectStore => {}
                }
            }
        }
        Ok(evictions)
    }

    /// Whether a device had the block.
    fn evict_from_devices(&self, id: &BlockId) -> bool {
        let Some(level) = self.levels.devices.level() else { return false };
        // Each of them.
        crate::device::ids(level).filter(|device| level.remove(id, *device)).count() > 0
    }
}

impl Generation {
    /// All blocks of a scope.
    async fn scope(
        &self,
        scope: &Scope,
        deadline: Instant,
    ) -> Result<Vec<ScopedBlock>, EngineError> {
        let mut blocks = Vec::new();
        for step in self.scope_steps(scope)? {
            blocks.extend(self.scope_blocks(&step, deadline).await?);
            self.bounded(blocks.len() as u64)?;
        }
        Ok(blocks)
    }
}
