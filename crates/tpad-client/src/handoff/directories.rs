//! Blocks that are held without a word to the daemon: by the directory of their
//! generation, which lies in memory that both have.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tpad_handoff::{DirectoryView, Hazards, Held, Uses};
use tpad_manifest::BlockKey;

use super::Acquired;
use super::held::{Guard, HeldBlock};
use super::link::Link;
use super::slabs::Slabs;
use crate::{Medium, PlacedBlock};

/// What this worker may hold blocks by.
#[derive(Debug)]
pub(super) struct Directories {
    slabs: Arc<Slabs>,
    /// The worker's cells, once the daemon has sent them.
    hazards: OnceLock<Arc<Hazards>>,
    /// By model, of the generation that was sent last.
    models: RwLock<HashMap<String, Watched>>,
    /// Bytes of slots that are held, by cells and by leases, each as often as it is.
    held: Arc<AtomicU64>,
    /// What they may be, as the daemon says when it welcomes; it looks, too.
    most: AtomicU64,
}

/// A generation of a model.
#[derive(Debug)]
struct Watched {
    revision: u64,
    generation: u64,
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

/// Keeps a slot as it is without a lease.
#[derive(Debug)]
pub(super) struct Cell {
    // First: the connection keeps it true.
    _held: Held<Arc<Hazards>>,
    _counted: Counted,
    _link: Arc<Link>,
}

/// Bytes that count against the bound.
#[derive(Debug)]
pub(super) struct Counted {
    bytes: u64,
    held: Arc<AtomicU64>,
}

impl Directories {
    /// Nothing, and nothing may be held.
    pub(super) fn new(slabs: &Arc<Slabs>) -> Arc<Self> {
        Arc::new(Self {
            slabs: Arc::clone(slabs),
            hazards: OnceLock::new(),
            models: RwLock::default(),
            held: Arc::default(),
            most: AtomicU64::new(0),
        })
    }

    /// So many bytes may be held.
    pub(super) fn set_most(&self, bytes: u64) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    /// Takes over the cells and a generation's directory. What cannot be mapped is done
    /// without: blocks are asked for then.
    pub(super) fn watch(
        &self,
        model: &str,
        (revision, generation): (u64, u64),
        cells: Option<OwnedFd>,
        [directory, uses]: [OwnedFd; 2],
    ) {
        if let Some(hazards) = cells.and_then(|cells| Hazards::receive(cells).ok()) {
            // The first are the only ones.
            let _again = self.hazards.set(Arc::new(hazards));
        }
        let (directory, uses) = (DirectoryView::receive(directory), Uses::receive(uses));
        let (Ok(directory), Ok(uses)) = (directory, uses) else { return };
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        // An answer of a generation that is not served any more may come late.
        if models.get(model).is_none_or(|watched| watched.generation < generation) {
            let known = HashMap::new();
            let watched = Watched { revision, generation, directory, uses, known };
            models.insert(model.to_owned(), watched);
        }
    }

    /// Remembers blocks that were acquired.
    pub(super) fn learn(
        &self,
        model: &str,
        generation: u64,
        blocks: impl Iterator<Item = (u32, Arc<PlacedBlock>)>,
    ) {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        let watched = models.get_mut(model).filter(|watched| watched.generation == generation);
        let Some(watched) = watched else { return };
        for (ordinal, block) in blocks {
            watched.known.insert(block.key.clone(), Known { ordinal, block });
        }
    }

    /// All of these blocks where they lie, or nothing, if one is to be asked for.
    pub(super) fn hold(
        &self,
        link: &Arc<Link>,
        model: &str,
        keys: &[BlockKey],
        generation: Option<u64>,
    ) -> Option<Acquired> {
        if link.shared.is_over() {
            // The directory is what the daemon left behind.
            return None;
        }
        let hazards = self.hazards.get()?;
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let watched = models.get(model)?;
        if generation.is_some_and(|generation| generation != watched.generation) {
            return None;
        }
        let mut blocks = Vec::with_capacity(keys.len());
        for key in keys {
            blocks.push(Ok(self.hold_one(hazards, watched, link, key)?));
        }
        let Watched { revision, generation, .. } = *watched;
        Some(Acquired { revision, generation, blocks })
    }

    fn hold_one(
        &self,
        hazards: &Arc<Hazards>,
        watched: &Watched,
        link: &Arc<Link>,
        key: &BlockKey,
    ) -> Option<HeldBlock> {
        let Known { ordinal, block } = watched.known.get(key)?;
        let held = Hazards::hold(Arc::clone(hazards), &watched.directory, *ordinal).ok()?;
        let place = held.entry().place();
        // One that this process was not sent, or gave back, comes with an answer.
        let slab = self.slabs.get(u64::from(place.slab()))?;
        let start = slab.slot(place.slot())?;
        let counted = self.count(slab.slot_bytes())?;
        watched.uses.count(*ordinal);
        let cell = Cell { _held: held, _counted: counted, _link: Arc::clone(link) };
        HeldBlock::new(Arc::clone(block), start, slab, Medium::Dram, Guard::Cell(cell))
    }

    /// Counts the slot of a block that the daemon has leased.
    pub(super) fn count_lease(&self, bytes: u64) -> Counted {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Counted { bytes, held: Arc::clone(&self.held) }
    }

    /// Forgets everything: the connection is over.
    pub(super) fn clear(&self) {
        self.models.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Counts bytes, if there may be so many.
    fn count(&self, bytes: u64) -> Option<Counted> {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        // Dropped, it counts no more.
        let counted = Counted { bytes, held: Arc::clone(&self.held) };
        (before.saturating_add(bytes) <= self.most.load(Ordering::Relaxed)).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
