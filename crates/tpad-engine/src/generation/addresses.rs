//! Where the blocks of a generation lie, for workers that ask nobody.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tpad_manifest::{BlockId, BlockKey, Catalog, IndexHeader};
use tpad_store::{Arena, SlotDirectory};

use super::{Block, Generation};

/// A directory of the generation's blocks, with the ordinals that they have in it. A
/// block gets one when a worker acquires it first.
pub(crate) struct Addresses {
    directory: SlotDirectory,
    /// How many ordinals there can be.
    count: u32,
    ordinals: Mutex<Ordinals>,
}

#[derive(Default)]
struct Ordinals {
    of: HashMap<BlockKey, u32>,
    /// By ordinal.
    ids: Vec<BlockId>,
}

impl Addresses {
    fn create(arena: &Arc<Arena>, catalog: &Catalog, epoch: u64) -> io::Result<Self> {
        let count = blocks(catalog);
        let directory = SlotDirectory::create(arena, count, epoch).map_err(io::Error::other)?;
        Ok(Self { directory, count, ordinals: Mutex::default() })
    }

    /// How many blocks it is for.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// To be sent to workers.
    pub(crate) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.directory.descriptor()
    }

    /// Lets workers find a block where it lies; its ordinal. `None` when there is none
    /// left, which a catalog that counts its blocks right does not come to.
    pub(crate) fn publish(&self, block: &Block) -> Option<u32> {
        let ordinal = self.lock().ordinal(block, self.count)?;
        // It may be refused: then workers go on asking.
        self.directory.publish(ordinal, &block.served.bytes);
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
        self.directory.is_closed()
    }

    /// No worker finds anything here any more.
    pub(super) fn close(&self) {
        self.directory.close();
    }

    fn lock(&self) -> MutexGuard<'_, Ordinals> {
        // Every change under the lock is whole: there is nothing to repair.
        self.ordinals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ordinals {
    fn ordinal(&mut self, block: &Block, count: u32) -> Option<u32> {
        if let Some(ordinal) = self.of.get(&block.key) {
            return Some(*ordinal);
        }
        let ordinal = u32::try_from(self.ids.len()).ok().filter(|ordinal| *ordinal < count)?;
        self.ids.push(block.record.id);
        self.of.insert(block.key.clone(), ordinal);
        Some(ordinal)
    }
}

impl Generation {
    /// The directory of its blocks, made when it is first asked for; `None` when
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
        let arena = self.shared.hierarchy.dram().arena();
        let made = Arc::new(Addresses::create(arena, &self.catalog, epoch)?);
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
