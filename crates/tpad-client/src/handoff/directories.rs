//! Blocks that are held without a word to the daemon: by the directory of their
//! generation and memory, which lies in memory that both have.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tpad_handoff::{DirectoryView, Hazards, Held, Uses};
use tpad_manifest::BlockKey;

use super::device::{DeviceSlabs, OnSlab};
use super::held::{Guard, HeldBlock};
use super::link::Link;
use super::slabs::Slabs;
use super::{Acquired, AcquiredOn, HeldDeviceBlock};
use crate::{Gpu, Medium, PlacedBlock};

/// What this worker may hold blocks by.
#[derive(Debug)]
pub(super) struct Directories {
    slabs: Arc<Slabs>,
    device_slabs: Arc<DeviceSlabs>,
    /// The worker's cells, once the daemon has sent them.
    hazards: OnceLock<Arc<Hazards>>,
    /// Of host memory.
    host: Models,
    /// Of devices, by UUID.
    devices: RwLock<HashMap<String, Arc<Models>>>,
    /// Bytes of slots that are held, by cells and by leases, each as often as it is.
    held: Arc<AtomicU64>,
    /// What they may be, as the daemon says when it welcomes; it looks, too.
    most: AtomicU64,
}

/// By model, of the generation that was sent last.
type Models = RwLock<HashMap<String, Watched>>;

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
    /// Of host memory alone, where blocks that are held are bounded.
    _counted: Option<Counted>,
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
    pub(super) fn new(slabs: &Arc<Slabs>, device_slabs: &Arc<DeviceSlabs>) -> Arc<Self> {
        Arc::new(Self {
            slabs: Arc::clone(slabs),
            device_slabs: Arc::clone(device_slabs),
            hazards: OnceLock::new(),
            host: RwLock::default(),
            devices: RwLock::default(),
            held: Arc::default(),
            most: AtomicU64::new(0),
        })
    }

    /// So many bytes may be held.
    pub(super) fn set_most(&self, bytes: u64) {
        self.most.store(bytes, Ordering::Relaxed);
    }

    /// Takes over the cells and a generation's directory, of host memory or a device's. What
    /// cannot be mapped is done without: blocks are asked for then.
    pub(super) fn watch(
        &self,
        device: &str,
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
        let watch = |models: &Models| {
            let mut models = models.write().unwrap_or_else(PoisonError::into_inner);
            // An answer of a generation that is not served any more may come late.
            if models.get(model).is_none_or(|watched| watched.generation < generation) {
                let known = HashMap::new();
                let watched = Watched { revision, generation, directory, uses, known };
                models.insert(model.to_owned(), watched);
            }
        };
        if device.is_empty() {
            watch(&self.host);
        } else {
            let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
            watch(devices.entry(device.to_owned()).or_default());
        }
    }

    /// Remembers blocks that were acquired, in host memory or a device's.
    pub(super) fn learn(
        &self,
        device: &str,
        model: &str,
        generation: u64,
        blocks: Vec<(u32, Arc<PlacedBlock>)>,
    ) {
        let on_device = if device.is_empty() { None } else { self.on(device) };
        let models = if device.is_empty() { Some(&self.host) } else { on_device.as_deref() };
        let Some(models) = models else { return };
        let mut models = models.write().unwrap_or_else(PoisonError::into_inner);
        let watched = models.get_mut(model).filter(|watched| watched.generation == generation);
        let Some(watched) = watched else { return };
        for (ordinal, block) in blocks {
            watched.known.insert(block.key.clone(), Known { ordinal, block });
        }
    }

    /// All of these blocks where they lie in host memory, or nothing, if one is to be asked
    /// for.
    pub(super) fn hold(
        &self,
        link: &Arc<Link>,
        model: &str,
        keys: &[BlockKey],
        generation: Option<u64>,
    ) -> Option<Acquired> {
        let find = |held: Held<Arc<Hazards>>| {
            let place = held.entry().place();
            // One that this process was not sent, or gave back, comes with an answer.
            let slab = self.slabs.get(u64::from(place.slab()))?;
            let start = slab.slot(place.slot())?;
            let counted = Some(self.count(slab.slot_bytes())?);
            Some((start, slab, Cell { _held: held, _counted: counted, _link: Arc::clone(link) }))
        };
        let build = |block: &Arc<PlacedBlock>, (start, slab, cell)| {
            HeldBlock::new(Arc::clone(block), start, slab, Medium::Dram, Guard::Cell(cell))
        };
        self.hold_all(&self.host, link, (model, generation), keys, find, build)
    }

    /// All of these blocks where they lie on a device, or nothing, if one is to be asked for.
    pub(super) fn hold_on(
        &self,
        link: &Arc<Link>,
        gpu: &Gpu,
        model: &str,
        keys: &[BlockKey],
        generation: Option<u64>,
    ) -> Option<AcquiredOn> {
        let models = self.on(gpu.uuid())?;
        let find = |held: Held<Arc<Hazards>>| {
            let place = held.entry().place();
            let slab = self.device_slabs.get(u64::from(place.slab()))?;
            let cell = Cell { _held: held, _counted: None, _link: Arc::clone(link) };
            OnSlab::mapped(slab, gpu, place.slot(), cell)
        };
        let build = |block: &Arc<PlacedBlock>, there: OnSlab| {
            HeldDeviceBlock::by_cell(gpu, Arc::clone(block), there)
        };
        self.hold_all(&models, link, (model, generation), keys, find, build)
    }

    /// All of these blocks, or nothing. Until all are found there are but cells, which are
    /// let go of at once: a block on a device goes when the device's work is done.
    fn hold_all<P, B>(
        &self,
        models: &Models,
        link: &Arc<Link>,
        (model, generation): (&str, Option<u64>),
        keys: &[BlockKey],
        find: impl Fn(Held<Arc<Hazards>>) -> Option<P>,
        build: impl Fn(&Arc<PlacedBlock>, P) -> Option<B>,
    ) -> Option<Acquired<B>> {
        if link.shared.is_over() {
            // The directory is what the daemon left behind.
            return None;
        }
        let hazards = self.hazards.get()?;
        let models = models.read().unwrap_or_else(PoisonError::into_inner);
        let watched = models.get(model)?;
        if generation.is_some_and(|generation| generation != watched.generation) {
            return None;
        }
        let mut found = Vec::with_capacity(keys.len());
        for key in keys {
            let Known { ordinal, block } = watched.known.get(key)?;
            let held = Hazards::hold(Arc::clone(hazards), &watched.directory, *ordinal).ok()?;
            found.push((*ordinal, block, find(held)?));
        }
        let mut blocks = Vec::with_capacity(keys.len());
        for (ordinal, block, there) in found {
            blocks.push(Ok(build(block, there)?));
            watched.uses.count(ordinal);
        }
        let Watched { revision, generation, .. } = *watched;
        Some(Acquired { revision, generation, blocks })
    }

    fn on(&self, device: &str) -> Option<Arc<Models>> {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        devices.get(device).cloned()
    }

    /// Counts the slot of a block that the daemon has leased.
    pub(super) fn count_lease(&self, bytes: u64) -> Counted {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Counted { bytes, held: Arc::clone(&self.held) }
    }

    /// Forgets everything: the connection is over.
    pub(super) fn clear(&self) {
        self.host.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.devices.write().unwrap_or_else(PoisonError::into_inner).clear();
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
