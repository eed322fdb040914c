//! Bringing blocks to the level where they are at home, below all demand.

use std::sync::Arc;

use tokio::time::Instant;

use super::flight::Purpose;
use super::{Hierarchy, pages_of};
use crate::level::Level as _;
use crate::{BlockFetch, Medium, Origin, ReadError, ReadOptions, Urgency};

/// What staging a block came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// The level has it now.
    There,
    /// The level is well and has no room for it.
    Refused,
    /// There is no such level, or it is in no state to take blocks: nothing was
    /// read.
    OutOfService,
}

/// What a block may take of a budget that is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The place of what nobody wanted for the longest time: for one of blocks
    /// that fit in all, so that what they push out has no home there.
    Firm,
    /// The place of what is wanted less often, if there is any.
    Loose,
}

impl Hierarchy {
    /// Brings a block to `home`, host memory or a level below it, unless it is
    /// there: after every demand read, and without waiting for memory. On its way
    /// to a level below, it takes nothing of what host memory keeps.
    ///
    /// # Errors
    /// As [`Hierarchy::read`].
    pub async fn stage(
        &self,
        origin: &Arc<dyn Origin>,
        fetch: &Arc<BlockFetch>,
        home: Medium,
        claim: Claim,
        deadline: Instant,
    ) -> Result<Staged, ReadError> {
        if self.settled(home, &fetch.id) {
            return Ok(Staged::There);
        }
        let options = ReadOptions { deadline, urgency: Urgency::Prefetch };
        let inner = &self.inner;
        if home == Medium::Dram {
            let served = inner.read(origin, fetch, options, Purpose::Home).await?;
            // Blocks of a revision that is gone were read often, this one never.
            let there = inner.dram.contains(&fetch.id)
                || claim == Claim::Firm
                    && inner.dram.settle_in(&fetch.id, &fetch.class, &served.bytes);
            return Ok(if there { Staged::There } else { Staged::Refused });
        }
        let level = inner.lower.iter().find(|level| level.medium() == home);
        let Some(level) = level.filter(|level| level.takes()) else {
            return Ok(Staged::OutOfService);
        };
        let slot_bytes = inner.dram.arena().slot_bytes(fetch.bytes).unwrap_or(fetch.bytes);
        let pages = pages_of(slot_bytes).min(inner.most_stage_pages);
        let late = |_| ReadError::Deadline { id: fetch.id };
        let memory = inner.stage_pages.acquire_many(pages);
        let memory = tokio::time::timeout_at(deadline, memory).await.map_err(late)?;
        let _memory = memory.map_err(|_closed| ReadError::Stopping)?;
        let served = inner.read(origin, fetch, options, Purpose::Lower).await?;
        let admit = async {
            let _turn = inner.level_writes.acquire().await;
            level.admit(&fetch.id, &fetch.class, &served.bytes).await
        };
        let kept = tokio::select! {
            kept = admit => kept,
            () = inner.stop.cancelled() => return Err(ReadError::Stopping),
        };
        // A reader may have had it written in the meantime.
        Ok(if kept || level.offers(&fetch.id) {
            Staged::There
        } else if level.takes() {
            Staged::Refused
        } else {
            Staged::OutOfService
        })
    }
}
