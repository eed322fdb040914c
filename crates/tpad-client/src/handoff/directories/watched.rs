//! What this worker knows of the generations that it was sent directories of.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tpad_handoff::{DirectoryView, Hazards, Held, Uses};
use tpad_manifest::BlockKey;

use super::Ground;
use crate::PlacedBlock;
use crate::handoff::Acquired;

/// By model, of the generation that was sent last.
pub(super) type Models = RwLock<HashMap<String, Watched>>;

/// A generation of a model.
#[derive(Debug)]
pub(super) struct Watched {
    revision: u64,
    pub(super) generation: u64,
    directory: DirectoryView,
    uses: Uses,
    known: HashMap<BlockKey, Known>,
}

/// A block that this worker acquired once: what it is, from the start of its slot.
#[derive(Clone, Debug)]
struct Known {
    ordinal: u32,
    block: Arc<PlacedBlock>,
}

impl Watched {
    pub(super) fn new(
        revision: u64,
        generation: u64,
        directory: DirectoryView,
        uses: Uses,
    ) -> Self {
        Self { revision, generation, directory, uses, known: HashMap::new() }
    }

    /// Remembers blocks by their ordinals.
    pub(super) fn learn(&mut self, blocks: Vec<(u32, Arc<PlacedBlock>)>) {
        for (ordinal, block) in blocks {
            self.known.insert(block.key.clone(), Known { ordinal, block });
        }
    }

    /// A block that is held, by its ordinal, and where it lies.
    fn find<P>(
        &self,
        by: &Ground,
        key: &BlockKey,
        find: impl Fn(Held<Ground>) -> Option<P>,
    ) -> Option<(u32, &Arc<PlacedBlock>, P)> {
        let Known { ordinal, block } = self.known.get(key)?;
        let held = Hazards::hold(by.clone(), &self.directory, *ordinal).ok()?;
        Some((*ordinal, block, find(held)?))
    }
}

/// One block, or nothing.
pub(super) fn hold_one<P, B>(
    models: &Models,
    by: &Ground,
    model: &str,
    key: &BlockKey,
    find: impl Fn(Held<Ground>) -> Option<P>,
    build: impl Fn(&Arc<PlacedBlock>, P) -> Option<B>,
) -> Option<B> {
    if by.is_over() {
        return None;
    }
    let models = models.read().unwrap_or_else(PoisonError::into_inner);
    let watched = models.get(model)?;
    let (ordinal, block, there) = watched.find(by, key, find)?;
    let block = build(block, there)?;
    watched.uses.count(ordinal);
    Some(block)
}

/// Whether a block is there, without holding it.
pub(super) fn is_there(models: &Models, model: &str, key: &BlockKey) -> bool {
    let models = models.read().unwrap_or_else(PoisonError::into_inner);
    let there = |watched: &Watched| {
        let Known { ordinal, .. } = watched.known.get(key)?;
        watched.directory.get(*ordinal)
    };
    models.get(model).and_then(there).is_some()
}

/// All of these blocks, or nothing. Until all are found there are but cells, which are let
/// go of at once: a block on a device goes when the device's work is done.
pub(super) fn hold_all<P, B>(
    models: &Models,
    by: &Ground,
    (model, generation): (&str, Option<u64>),
    keys: &[BlockKey],
    find: impl Fn(Held<Ground>) -> Option<P>,
    build: impl Fn(&Arc<PlacedBlock>, P) -> Option<B>,
) -> Option<Acquired<B>> {
    if by.is_over() {
        return None;
    }
    let models = models.read().unwrap_or_else(PoisonError::into_inner);
    let watched = models.get(model)?;
    if generation.is_some_and(|generation| generation != watched.generation) {
        return None;
    }
    let found = keys.iter().map(|key| watched.find(by, key, &find));
    let found = found.collect::<Option<Vec<_>>>()?;
    let mut blocks = Vec::with_capacity(keys.len());
    for (ordinal, block, there) in found {
        blocks.push(Ok(build(block, there)?));
        watched.uses.count(ordinal);
    }
    let Watched { revision, generation, .. } = *watched;
    Some(Acquired { revision, generation, blocks })
}
