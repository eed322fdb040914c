//! What a store holds and does, for the status page.

use super::OriginLane;
use crate::dram::ClassUsage;
use crate::level::{Health, LevelReader, LevelUsage};
use crate::{ArenaUsage, Medium};

/// What a store holds and does.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct StoreStatus {
    /// The levels, fastest first.
    pub levels: Vec<LevelStatus>,
    /// The memory under the host-memory level.
    pub arena: ArenaUsage,
    /// What each class of blocks keeps in host memory.
    pub classes: Vec<ClassUsage>,
    /// What is asked of each origin.
    pub origins: Vec<OriginLane>,
    /// Blocks that are being filled or wait for it.
    pub fills: usize,
    /// Fills that wait for memory.
    pub fills_waiting_for_memory: usize,
    /// Reads that wait for a fill.
    pub reads_waiting: usize,
}

/// One level.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LevelStatus {
    /// What it is made of.
    pub level: Medium,
    /// What it holds.
    pub usage: LevelUsage,
    /// Whether it works.
    pub health: Health,
    /// What else there is to know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// How it reads, where there are several ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reader: Option<LevelReader>,
    /// How often it had what it was asked for, since the start.
    pub lookups: Lookups,
}

/// How often blocks were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Lookups {
    /// They were there.
    pub hits: u64,
    /// They were not.
    pub misses: u64,
    /// Hits among all; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<f64>,
}

impl Lookups {
    /// Of these counts.
    #[must_use]
    pub fn of(hits: u64, misses: u64) -> Self {
        let all = hits.saturating_add(misses);
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let hit_ratio = (all > 0).then(|| hits as f64 / all as f64);
        Self { hits, misses, hit_ratio }
    }
}
