//! Blocks that workers hold by directories, without a word to this process.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, TryLockError};
use std::time::Duration;

use tokio::time::Instant;
use tpad_handoff::{Place as Slot, UsesView};
use tpad_manifest::{BlockId, BlockKey};
use tpad_store::{InSlot, Level as _, Place, SlotReader};

use super::{Leases, Worker, WorkerState, lock};
use crate::generation::Addresses;
use crate::{Generation, Memory};

/// What a block's uses count for at most, of one worker between two looks: the policy
/// tells no more apart, and a worker writes what it likes.
const USES_COUNTED: u32 = 15;

/// Uses that are told to the policy at one look, of one worker: some milliseconds.
const USES_TOLD: u32 = 1 << 14;

/// Uses are not asked for again within this: blocks that come at once are of one look.
const JUST_NOW: Duration = Duration::from_millis(1);

/// Nor within so many times what it took.
const LEARNING_RESTS: u32 = 20;

/// Looks in a row at which a worker holds more than it may before it is told so: one
/// may fall between a lease and what it was for.
const LOOKS_OVER: u32 = 3;

/// Of its bound, what all workers may hold before directories open again.
const REOPEN: (u64, u64) = (7, 8);

/// What a worker is sent of one generation in one memory.
#[derive(Debug)]
pub struct DirectoryOffer {
    /// The worker's cells; `None` if it has them.
    pub cells: Option<OwnedFd>,
    /// The directory.
    pub directory: OwnedFd,
    /// Counters of what the worker uses.
    pub uses: OwnedFd,
    /// How many blocks the directory is for.
    pub blocks: u32,
}

/// What one worker holds by directories.
#[derive(Debug, Default)]
pub(super) struct Direct {
    /// Its cells, once it has them.
    cells: Option<SlotReader>,
    /// Generations whose directory it has, and of which memory.
    watched: Vec<Watched>,
    /// How often in a row it held more than it may.
    over: u32,
}

#[derive(Debug)]
struct Watched {
    /// The generation's number and model.
    number: u64,
    model: Arc<str>,
    memory: Memory,
    addresses: Arc<Addresses>,
    uses: UsesView,
}

impl Worker {
    /// What the worker needs to hold blocks of this generation in this memory without a
    /// message, the first time; `None` if it has it, wants none, or another generation is
    /// served.
    ///
    /// # Errors
    /// When the kernel gives no memory or no descriptor. The worker goes on by asking.
    pub fn offer(
        &self,
        generation: &Generation,
        memory: Memory,
    ) -> io::Result<Option<DirectoryOffer>> {
        let all = &self.state.all;
        let mut direct = lock(&self.state.direct);
        let number = generation.number();
        let has = |it: &Watched| it.number == number && it.memory == memory;
        if !self.state.directories || direct.watched.iter().any(has) {
            return Ok(None);
        }
        let Some(addresses) = generation.addresses(all.epoch)? else { return Ok(None) };
        let Some(directory) = addresses.descriptor(memory) else { return Ok(None) };
        let directory = directory?;
        let blocks = addresses.count();
        let uses = UsesView::create(blocks, all.epoch).map_err(io::Error::other)?;
        let sent_uses = uses.descriptor().as_fd().try_clone_to_owned()?;
        let cells = match direct.cells {
            Some(_) => None,
            None => {
                let arena = all.hierarchy.dram().arena();
                let cells = SlotReader::admit(arena, all.epoch).map_err(io::Error::other)?;
                let sent = cells.descriptor()?;
                direct.cells = Some(cells);
                Some(sent)
            }
        };
        if let (Memory::Device(_), Some(level), Some(cells)) =
            (memory, &all.devices, &mut direct.cells)
        {
            cells.read_too(level.workers());
        }
        // One generation of a model is served at a time.
        direct.watched.retain(|it| *it.model != *generation.model() || it.number == number);
        let model = generation.model().into();
        direct.watched.push(Watched { number, model, memory, addresses, uses });
        Ok(Some(DirectoryOffer { cells, directory, uses: sent_uses, blocks }))
    }

    /// Completes when the worker keeps on holding more than it may by its cells.
    pub async fn overdrawn(&self) {
        self.state.overdrawn.notified().await;
    }
}

impl WorkerState {
    /// Lets the worker find a block that it leased in this memory by itself.
    pub(super) fn publish(
        &self,
        generation: &Generation,
        memory: Memory,
        named: (&BlockKey, &BlockId),
        block: &impl InSlot,
    ) -> Option<u32> {
        if !self.directories {
            return None;
        }
        // Without a directory, blocks are asked for.
        let addresses = generation.addresses(self.all.epoch).ok()??;
        addresses.publish(memory, named, block)
    }

    /// Slots of devices that it holds by its cells, with their bytes.
    pub(super) fn held_on_devices(&self) -> BTreeMap<Slot, u64> {
        let Some(level) = &self.all.devices else { return BTreeMap::new() };
        let direct = lock(&self.direct);
        let named = direct.cells.as_ref().and_then(SlotReader::named);
        named.map(|named| level.bytes_of(&named)).unwrap_or_default()
    }

    /// Slots that it holds by its cells.
    pub(super) fn held_directly(&self) -> Vec<Place> {
        lock(&self.direct).cells.as_ref().map_or_else(Vec::new, SlotReader::places)
    }

    /// What it used since this was asked last, told to the policy; how many uses of blocks
    /// that there are.
    fn take_uses(&self, all: &Leases) -> u64 {
        let mut used = Vec::new();
        {
            let mut direct = lock(&self.direct);
            direct.watched.retain(|watched| !watched.addresses.is_closed());
            for watched in &direct.watched {
                let mut counted = Vec::new();
                watched.uses.drain(|ordinal, count| counted.push((ordinal, count)));
                let blocks = watched.addresses.blocks_of(counted);
                used.extend(blocks.into_iter().map(|(id, count)| (watched.memory, id, count)));
            }
        }
        let dram = all.hierarchy.dram();
        let mut told = 0;
        for (memory, id, count) in &used {
            let count = (*count).min(USES_COUNTED).min(USES_TOLD - told);
            told += count;
            match (memory, &all.devices) {
                (Memory::Host, _) => (0..count).for_each(|_| {
                    dram.settle(id);
                }),
                (Memory::Device(device), Some(level)) => level.used(id, *device, count),
                (Memory::Device(_), None) => {}
            }
        }
        used.iter().map(|(_, _, count)| u64::from(*count)).sum()
    }

    /// Bytes of slots that it holds by its cells and no lease names.
    fn look(&self) -> (u64, Vec<Place>) {
        let places = self.held_directly();
        let held = lock(&self.held);
        let bytes = held.ledger.bytes_beside(&places);
        // Leases are bounded as they are granted, and the worker tells of their end late.
        let over = bytes > self.all.worker_bytes();
        drop(held);
        let mut direct = lock(&self.direct);
        direct.over = if over { direct.over + 1 } else { 0 };
        if direct.over >= LOOKS_OVER {
            self.overdrawn.notify_one();
        }
        (bytes, places)
    }
}

impl Leases {
    /// Tells the policies what workers used until now, unless they were told just now: before
    /// blocks are given up for others. What comes is in the order of these looks.
    pub(super) fn learn_uses(&self) {
        let mut again = match self.learn_again.try_lock() {
            Ok(again) => again,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let began = Instant::now();
        if again.is_some_and(|again| began < again) {
            return;
        }
        let uses = self.present().iter().map(|worker| worker.take_uses(self)).sum();
        self.uses_taken.fetch_add(uses, Ordering::Relaxed);
        // Whatever workers write into their counters, this takes a small part of the time.
        let took = began.elapsed();
        *again = Some(Instant::now() + JUST_NOW.max(took * LEARNING_RESTS));
    }

    /// What all workers hold by their cells now.
    pub(super) fn look_again(&self) {
        let places: HashSet<Place> =
            self.present().iter().flat_map(|worker| worker.held_directly()).collect();
        *lock(&self.direct) = places.into_iter().collect();
    }

    /// Slots of all memories.
    pub(super) fn free_what_nobody_reads(&self) {
        self.hierarchy.dram().arena().free_what_nobody_reads();
        if let Some(level) = &self.devices {
            level.free_what_nobody_reads();
        }
    }

    fn present(&self) -> Vec<Arc<WorkerState>> {
        lock(&self.workers).values().filter_map(std::sync::Weak::upgrade).collect()
    }

    /// Looks after what workers do without a word: learns what they use, frees what they
    /// let go of, and sees to it that they hold no more than they may. To be called every
    /// 100 ms.
    pub(crate) fn tend(&self) {
        let workers = self.present();
        let uses: u64 = workers.iter().map(|worker| worker.take_uses(self)).sum();
        let uses = uses + self.uses_taken.swap(0, Ordering::Relaxed);
        self.free_what_nobody_reads();
        let mut places = HashSet::new();
        for worker in &workers {
            let (bytes, held) = worker.look();
            worker.direct_bytes.store(bytes, Ordering::Relaxed);
            places.extend(held);
        }
        let places: Vec<Place> = places.into_iter().collect();
        let (leased, beside) = {
            let all = lock(&self.all);
            (all.bytes(), all.bytes_beside(&places))
        };
        *lock(&self.direct) = places;
        self.metrics.held_directly(uses, beside);
        self.open_or_shut(leased.saturating_add(beside), beside);
    }

    /// While workers hold more than they may together, they have to ask for each block,
    /// and are refused.
    fn open_or_shut(&self, held: u64, beside: u64) {
        let (part, of) = REOPEN;
        let shut = self.shut.load(Ordering::Relaxed);
        let arena = self.hierarchy.dram().arena();
        if !shut && held > self.bounds.bytes {
            self.shut.store(true, Ordering::Relaxed);
            arena.open_directories(false);
        } else if shut && (held <= self.bounds.bytes / of * part || beside == 0) {
            self.shut.store(false, Ordering::Relaxed);
            arena.open_directories(true);
        }
    }
}
