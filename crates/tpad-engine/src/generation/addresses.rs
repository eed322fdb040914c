//! Where the blocks of a generation lie, for workers that ask nobody.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tpad_hbm::DeviceId;
use tpad_manifest::{BlockId, BlockKey, Catalog, IndexHeader};
use tpad_store::{Arena, InSlot, Readers, SlotDirectory};

use super::Generation;
use crate::DeviceMemory;

/// Directories of the generation's blocks, one for each memory, with the ordinals that
/// blocks have in all of them. A block gets one when a worker acquires it first.
pub(crate) struct Addresses {
    directories: BTreeMap<Memory, SlotDirectory>,
    /// How many ordinals there can be.
    count: u32,
    ordinals: Mutex<Ordinals>,
    closed: AtomicBool,
}

/// Whose memory blocks lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// The host's.
    Host,
    /// A device's.
    Device(DeviceId),
}

#[derive(Default)]
struct Ordinals {
    of: HashMap<BlockKey, u32>,
    /// By ordinal.
    ids: Vec<BlockId>,
}

impl Addresses {
    fn create(
        arena: &Arena,
        devices: &DeviceMemory,
        catalog: &Catalog,
        epoch: u64,
    ) -> io::Result<Self> {
        let count = blocks(catalog);
        let create = |(memory, readers): (Memory, &Arc<Readers>)| {
            let directory = SlotDirectory::create(readers, count, epoch);
            Ok((memory, directory.map_err(io::Error::other)?))
        };
        let of = |device: DeviceId, level: &'_ Arc<tpad_hbm::HbmLevel>| {
            Some((Memory::Device(device), Arc::clone(level.readers(device)?)))
        };
        let level = devices.level();
        let devices = level.into_iter().flat_map(|level| {
            crate::device::ids(level).filter_map(move |device| of(device, level))
        });
        let host = (Memory::Host, Arc::clone(arena.readers()));
        let memories: Vec<(Memory, Arc<Readers>)> = std::iter::once(host).chain(devices).collect();
        let directories = memories.iter().map(|(memory, readers)| create((*memory, readers)));
        let directories = directories.collect::<io::Result<_>>()?;
        Ok(Self { directories, count, ordinals: Mutex::default(), closed: AtomicBool::new(false) })
    }

    /// How many blocks each is for.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// To be sent to workers; `None` for a device that there is not.
    pub(crate) fn descriptor(&self, memory: Memory) -> Option<io::Result<OwnedFd>> {
        Some(self.directories.get(&memory)?.descriptor())
    }

    /// Lets workers find a block where it lies; its ordinal. `None` when there is none
    /// left, which a catalog that counts its blocks right does not come to.
    pub(crate) fn publish(
        &self,
        memory: Memory,
        (key, id): (&BlockKey, &BlockId),
        block: &impl InSlot,
    ) -> Option<u32> {
        let directory = self.directories.get(&memory)?;
        let ordinal = self.lock().ordinal(key, id, self.count)?;
        // It may be refused: then workers go on asking.
        directory.publish(ordinal, block);
        Some(ordinal)
    }

    /// Hands on what workers used, in blocks.
    pub(crate) fn blocks_of<T>(&self, used: Vec<(u32, T)>) -> Vec<(BlockId, T)> {
        let ordinals = self.lock();
        let id = |ordinal: u32| ordinals.ids.get(ordinal as usize).copied();
        used.into_iter().filter_map(|(ordinal, it)| Some((id(ordinal)?, it))).collect()
    }

    /// Whether no worker finds anything here any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// No worker finds anything here any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.directories.values().for_each(SlotDirectory::close);
    }

    fn lock(&self) -> MutexGuard<'_, Ordinals> {
        // Every change under the lock is whole: there is nothing to repair.
        self.ordinals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ordinals {
    fn ordinal(&mut self, key: &BlockKey, id: &BlockId, count: u32) -> Option<u32> {
        if let Some(ordinal) = self.of.get(key) {
            return Some(*ordinal);
        }
        let ordinal = u32::try_from(self.ids.len()).ok().filter(|ordinal| *ordinal < count)?;
        self.ids.push(*id);
        self.of.insert(key.clone(), ordinal);
        Some(ordinal)
    }
}

impl Generation {
    /// The directories of its blocks, made when they are first asked for; `None` when
    /// another generation is served by now.
    ///
    /// # Errors
    /// When the kernel gives no memory or no descriptor.
    pub(crate) fn addresses(&self, epoch: u64) -> io::Result<Option<Arc<Addresses>>> {
        // Held while it is made: there is one.
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if self.retired.is_cancelled() {
            return Ok(None);
        }
        if let Some(addresses) = &*addresses {
            return Ok(Some(Arc::clone(addresses)));
        }
        let (arena, devices) = (self.shared.hierarchy.dram().arena(), &self.shared.devices);
        let made = Arc::new(Addresses::create(arena, devices, &self.catalog, epoch)?);
        *addresses = Some(Arc::clone(&made));
        Ok(Some(made))
    }

    /// Another generation takes the place of this one, or none does. Workers that find
    /// blocks by themselves find none from here on.
    pub(crate) fn retire(&self) {
        self.retired.cancel();
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(addresses) = addresses {
            addresses.close();
        }
    }
}

/// How many blocks there are at most: each segment may have a router besides.
fn blocks(catalog: &Catalog) -> u32 {
    let tiers = catalog.manifest().tiers.iter();
    let headers = tiers.filter_map(|tier| Some(catalog.tier(&tier.id.to_string()).ok()?.1));
    let count = |header: &Arc<IndexHeader>| header.blocks() + header.segments.len() as u64;
    let blocks: u64 = headers.chain(catalog.dense()).map(count).sum();
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").field("count", &self.count).finish_non_exhaustive()
    }
}
