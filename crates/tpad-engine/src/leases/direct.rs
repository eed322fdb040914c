//! Blocks that workers hold by directories, without a word to this process.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tpad_handoff::UsesView;
use tpad_store::{Level as _, Place, SlotReader};

use super::{Leases, Worker, WorkerState, lock};
use crate::generation::Addresses;
use crate::{Block, Generation};

/// What a block's uses count for at most, of one worker between two looks: the policy
/// tells no more apart, and a worker writes what it likes.
const USES_COUNTED: u32 = 15;

/// Uses that are told to the policy at one look, of one worker: some milliseconds.
const USES_TOLD: u32 = 1 << 14;

/// Looks in a row at which a worker holds more than it may before it is told so: one
/// may fall between a lease and what it was for.
const LOOKS_OVER: u32 = 3;

/// Of its bound, what all workers may hold before directories open again.
const REOPEN: (u64, u64) = (7, 8);

/// What a worker is sent of one generation.
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
    /// Generations whose directory it has.
    watched: Vec<Watched>,
    /// How often in a row it held more than it may.
    over: u32,
}

#[derive(Debug)]
struct Watched {
    /// The generation's number and model.
    number: u64,
    model: Arc<str>,
    addresses: Arc<Addresses>,
    uses: UsesView,
}

impl Worker {
    /// What the worker needs to hold blocks of this generation without a message, the
    /// first time; `None` if it has it, wants none, or another generation is served.
    ///
    /// # Errors
    /// When the kernel gives no memory or no descriptor. The worker goes on by asking.
    pub fn offer(&self, generation: &Generation) -> io::Result<Option<DirectoryOffer>> {
        let all = &self.state.all;
        let mut direct = lock(&self.state.direct);
        let number = generation.number();
        if !self.state.directories || direct.watched.iter().any(|it| it.number == number) {
            return Ok(None);
        }
        let Some(addresses) = generation.addresses(all.epoch)? else { return Ok(None) };
        let blocks = addresses.count();
        let uses = UsesView::create(blocks, all.epoch).map_err(io::Error::other)?;
        let directory = addresses.descriptor()?;
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
        // One generation of a model is served at a time.
        direct.watched.retain(|it| *it.model != *generation.model());
        let model = generation.model().into();
        direct.watched.push(Watched { number, model, addresses, uses });
        Ok(Some(DirectoryOffer { cells, directory, uses: sent_uses, blocks }))
    }

    /// Completes when the worker keeps on holding more than it may by its cells.
    pub async fn overdrawn(&self) {
        self.state.overdrawn.notified().await;
    }
}

impl WorkerState {
    /// Lets the worker find a block that it leased by itself.
    pub(super) fn publish(&self, generation: &Generation, block: &Block) -> Option<u32> {
        if !self.directories {
            return None;
        }
        // Without a directory, blocks are asked for.
        let addresses = generation.addresses(self.all.epoch).ok()??;
        addresses.publish(block)
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
                used.extend(watched.addresses.blocks_of(counted));
            }
        }
        let dram = all.hierarchy.dram();
        let mut told = 0;
        for (id, count) in &used {
            let count = (*count).min(USES_COUNTED).min(USES_TOLD - told);
            told += count;
            for _ in 0..count {
                dram.settle(id);
            }
        }
        used.iter().map(|(_, count)| u64::from(*count)).sum()
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
    /// What all workers hold by their cells now.
    pub(super) fn look_again(&self) {
        let places: HashSet<Place> =
            self.present().iter().flat_map(|worker| worker.held_directly()).collect();
        *lock(&self.direct) = places.into_iter().collect();
    }

    fn present(&self) -> Vec<Arc<WorkerState>> {
        lock(&self.workers).values().filter_map(std::sync::Weak::upgrade).collect()
    }

    /// Looks after what workers do without a word: learns what they use, frees what they
    /// let go of, and sees to it that they hold no more than they may. To be called every
    /// 100 ms.
    pub(crate) fn tend(&self) {
        let workers = self.present();
        let uses = workers.iter().map(|worker| worker.take_uses(self)).sum();
        self.hierarchy.dram().arena().free_what_nobody_reads();
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
