//! Blocks that are held without a word to the daemon: by the directory of their
//! generation and memory, which lies in memory that both have.

mod ground;
mod watched;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tpad_handoff::{DirectoryView, Hazards, Held, Uses};
use tpad_manifest::BlockKey;

pub(super) use self::ground::{Cell, Counted, Ground};
use self::watched::{Models, Watched, hold_all, hold_one, is_there};
use super::device::{DeviceSlabs, OnSlab};
use super::held::{Guard, HeldBlock};
use super::link::Link;
use super::slabs::{Slab, Slabs};
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
    /// Of devices, by UUID: few, so they are looked through.
    devices: RwLock<Vec<(String, Arc<Models>)>>,
    /// Bytes of slots that are held, by cells and by leases, each as often as it is.
    held: Arc<AtomicU64>,
    /// What they may be, as the daemon says when it welcomes; it looks, too.
    most: AtomicU64,
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
                let watched = Watched::new(revision, generation, directory, uses);
                models.insert(model.to_owned(), watched);
            }
        };
        if device.is_empty() {
            watch(&self.host);
        } else {
            let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
            let at = devices.iter().position(|(known, _)| known == device);
            let at = at.unwrap_or_else(|| {
                devices.push((device.to_owned(), Arc::default()));
                devices.len() - 1
            });
            if let Some((_, models)) = devices.get(at) {
                watch(models);
            }
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
        watched.learn(blocks);
    }

    /// What blocks are held by over this connection, once the daemon has sent cells.
    pub(super) fn ground(&self, link: &Arc<Link>) -> Option<Ground> {
        Some(Ground::new(self.hazards.get()?, link))
    }

    /// All of these blocks where they lie in host memory, or nothing, if one is to be asked
    /// for.
    pub(super) fn hold(
        &self,
        by: &Ground,
        model: &str,
        keys: &[BlockKey],
        generation: Option<u64>,
    ) -> Option<Acquired> {
        let find = |held| self.in_host_memory(held);
        hold_all(&self.host, by, (model, generation), keys, find, in_place)
    }

    /// One block as by [`Directories::hold`].
    pub(super) fn hold_one(&self, by: &Ground, model: &str, key: &BlockKey) -> Option<HeldBlock> {
        hold_one(&self.host, by, model, key, |held| self.in_host_memory(held), in_place)
    }

    /// All of these blocks where they lie on a device, or nothing, if one is to be asked for.
    pub(super) fn hold_on(
        &self,
        by: &Ground,
        gpu: &Gpu,
        model: &str,
        keys: &[BlockKey],
        generation: Option<u64>,
    ) -> Option<AcquiredOn> {
        let find = |held| self.on_slab(gpu, held);
        let build = |block: &Arc<PlacedBlock>, there| {
            HeldDeviceBlock::by_cell(gpu, Arc::clone(block), there)
        };
        hold_all(&*self.on(gpu.uuid())?, by, (model, generation), keys, find, build)
    }

    /// One block as by [`Directories::hold_on`].
    pub(super) fn hold_one_on(
        &self,
        by: &Ground,
        gpu: &Gpu,
        model: &str,
        key: &BlockKey,
    ) -> Option<HeldDeviceBlock> {
        let find = |held| self.on_slab(gpu, held);
        let build = |block: &Arc<PlacedBlock>, there| {
            HeldDeviceBlock::by_cell(gpu, Arc::clone(block), there)
        };
        hold_one(&*self.on(gpu.uuid())?, by, model, key, find, build)
    }

    /// Whether a block lies on a device, as far as this worker knows; it may be gone next.
    pub(super) fn is_on(&self, gpu: &Gpu, model: &str, key: &BlockKey) -> bool {
        self.on(gpu.uuid()).is_some_and(|models| is_there(&models, model, key))
    }

    fn in_host_memory(&self, held: Held<Ground>) -> Option<(usize, Arc<Slab>, Cell)> {
        let place = held.entry().place();
        // One that this process was not sent, or gave back, comes with an answer.
        let slab = self.slabs.get(u64::from(place.slab()))?;
        let start = slab.slot(place.slot())?;
        let counted = Some(self.count(slab.slot_bytes())?);
        Some((start, slab, Cell::new(held, counted)))
    }

    fn on_slab(&self, gpu: &Gpu, held: Held<Ground>) -> Option<OnSlab> {
        let place = held.entry().place();
        let slot = self.device_slabs.slot(u64::from(place.slab()), place.slot(), gpu.uuid());
        let (start, mapped) = slot?;
        Some(OnSlab { start, mapped, cell: Cell::new(held, None) })
    }

    fn on(&self, device: &str) -> Option<Arc<Models>> {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        devices.iter().find(|(known, _)| known == device).map(|(_, models)| Arc::clone(models))
    }

    /// Counts the slot of a block that the daemon has leased.
    pub(super) fn count_lease(&self, bytes: u64) -> Counted {
        Counted::new(bytes, &self.held).1
    }

    /// Forgets everything: the connection is over.
    pub(super) fn clear(&self) {
        self.host.write().unwrap_or_else(PoisonError::into_inner).clear();
        self.devices.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Counts bytes, if there may be so many.
    fn count(&self, bytes: u64) -> Option<Counted> {
        // Dropped, it counts no more.
        let (before, counted) = Counted::new(bytes, &self.held);
        (before.saturating_add(bytes) <= self.most.load(Ordering::Relaxed)).then_some(counted)
    }
}

/// A block of host memory that is held by a cell.
fn in_place(
    block: &Arc<PlacedBlock>,
    (start, slab, cell): (usize, Arc<Slab>, Cell),
) -> Option<HeldBlock> {
    HeldBlock::new(Arc::clone(block), start, slab, Medium::Dram, Guard::Cell(cell))
}
