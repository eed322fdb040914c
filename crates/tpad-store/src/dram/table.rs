//! The blocks that are kept, and the ledger of their bytes.

use std::collections::HashMap;

use tpad_handoff::Named;
use tpad_manifest::BlockId;

use crate::{BlockBytes, CacheClass};

/// The blocks that are kept.
///
/// The policy's caches hold ids and weights only: they forget entries late and
/// drop values when it suits them, while a slot has to be free at once.
#[derive(Debug, Default)]
pub(super) struct Table {
    blocks: HashMap<BlockId, Kept>,
    classes: HashMap<CacheClass, Account>,
    total: Account,
    /// Pinned blocks by the slab that they lie in.
    pinned_slabs: HashMap<u64, u32>,
    /// What of each class is pinned.
    pinned: HashMap<CacheClass, Account>,
    /// Counts uses and insertions.
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    bytes: BlockBytes,
    class: CacheClass,
    /// Tells this stay of the block from an earlier one.
    generation: u64,
    used: u64,
    /// Whoever wants it to stay; while there is one nothing gives it up.
    pins: u32,
    /// It was prefetched and nobody has asked for it yet.
    guess: bool,
}

/// What pinning a block did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Pinned {
    /// It is pinned for the first time: the policy knows it no more.
    First(CacheClass),
    /// It was pinned before.
    Again,
    /// There is no room for it among what is pinned.
    Refused,
}

/// A block that nobody pins any more: a new stay, for the policy to take up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unpinned {
    pub(super) class: CacheClass,
    pub(super) generation: u64,
    pub(super) slot_bytes: u64,
}

/// What a class keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

/// A kept block, for choosing which to give up.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) id: BlockId,
    pub(super) class: CacheClass,
    pub(super) slab: u64,
    pub(super) slot_bytes: u64,
    /// The clock when it was used last.
    pub(super) used: u64,
    /// Whether someone reads it: giving it up frees nothing yet.
    pub(super) leased: bool,
}

/// A block that is kept no more. Dropped outside of the table's lock.
pub(super) struct GivenUp {
    pub(super) class: CacheClass,
    bytes: BlockBytes,
    guess: bool,
}

impl GivenUp {
    /// What was read for nothing: of a prefetched block that nobody asked for.
    pub(super) fn wasted_bytes(&self) -> u64 {
        if self.guess { self.bytes.len() as u64 } else { 0 }
    }
}

impl Table {
    /// The block, used now.
    pub(super) fn get(&mut self, id: &BlockId) -> Option<(BlockBytes, CacheClass)> {
        self.clock += 1;
        let kept = self.blocks.get_mut(id)?;
        kept.used = self.clock;
        kept.guess = false;
        Some((kept.bytes.clone(), kept.class.clone()))
    }

    pub(super) fn contains(&self, id: &BlockId) -> bool {
        self.blocks.contains_key(id)
    }

    /// Whether this stay of the block goes on.
    pub(super) fn is_current(&self, id: &BlockId, generation: u64) -> bool {
        self.blocks.get(id).is_some_and(|kept| kept.generation == generation)
    }

    /// Keeps the block, unless it is kept already. Returns the stay's generation.
    pub(super) fn insert(
        &mut self,
        id: BlockId,
        class: &CacheClass,
        bytes: &BlockBytes,
        guess: bool,
    ) -> Option<u64> {
        if self.blocks.contains_key(&id) {
            return None;
        }
        self.clock += 1;
        let generation = self.clock;
        let account = Account { blocks: 1, bytes: bytes.padded().len() as u64 };
        self.classes.entry(class.clone()).or_default().add(account);
        self.total.add(account);
        let kept = Kept {
            bytes: bytes.clone(),
            class: class.clone(),
            generation,
            used: generation,
            pins: 0,
            guess,
        };
        self.blocks.insert(id, kept);
        Some(generation)
    }

    /// Gives the block up; with a generation, only in that stay. A pinned block
    /// stays.
    pub(super) fn remove(&mut self, id: &BlockId, generation: Option<u64>) -> Option<GivenUp> {
        if self.is_pinned(id) {
            return None;
        }
        if generation.is_some_and(|generation| !self.is_current(id, generation)) {
            return None;
        }
        let Kept { bytes, class, guess, .. } = self.blocks.remove(id)?;
        let account = Account { blocks: 1, bytes: bytes.padded().len() as u64 };
        self.total.subtract(account);
        subtract(&mut self.classes, &class, account);
        Some(GivenUp { class, bytes, guess })
    }

    /// Pins the block, and keeps it from now on if it was not kept. `admits`
    /// judges the slab that it lies in, with those that have pinned blocks.
    pub(super) fn pin(
        &mut self,
        id: &BlockId,
        class: &CacheClass,
        bytes: &BlockBytes,
        admits: impl FnOnce(u64, &HashMap<u64, u32>) -> bool,
    ) -> Pinned {
        let slab = self.blocks.get(id).map_or_else(|| bytes.slab(), |kept| kept.bytes.slab());
        if !self.is_pinned(id) && !admits(slab, &self.pinned_slabs) {
            return Pinned::Refused;
        }
        self.insert(*id, class, bytes, false);
        let Some(kept) = self.blocks.get_mut(id) else { return Pinned::Refused };
        kept.guess = false;
        kept.pins += 1;
        if kept.pins > 1 {
            return Pinned::Again;
        }
        let (class, slot_bytes) = (kept.class.clone(), kept.bytes.padded().len() as u64);
        *self.pinned_slabs.entry(slab).or_default() += 1;
        let account = Account { blocks: 1, bytes: slot_bytes };
        self.pinned.entry(class.clone()).or_default().add(account);
        Pinned::First(class)
    }

    /// Takes one pin back; the stay that begins with the last one, if it was.
    pub(super) fn unpin(&mut self, id: &BlockId) -> Option<Unpinned> {
        let kept = self.blocks.get_mut(id).filter(|kept| kept.pins > 0)?;
        kept.pins -= 1;
        if kept.pins > 0 {
            return None;
        }
        self.clock += 1;
        // What the policy still has to say of the stay before the pin is void.
        kept.generation = self.clock;
        let (class, slab) = (kept.class.clone(), kept.bytes.slab());
        let slot_bytes = kept.bytes.padded().len() as u64;
        if let Some(count) = self.pinned_slabs.get_mut(&slab) {
            *count -= 1;
            if *count == 0 {
                self.pinned_slabs.remove(&slab);
            }
        }
        subtract(&mut self.pinned, &class, Account { blocks: 1, bytes: slot_bytes });
        Some(Unpinned { class, generation: self.clock, slot_bytes })
    }

    pub(super) fn is_pinned(&self, id: &BlockId) -> bool {
        self.blocks.get(id).is_some_and(|kept| kept.pins > 0)
    }

    /// What of a class is pinned.
    pub(super) fn pinned_of(&self, class: &CacheClass) -> Account {
        self.pinned.get(class).copied().unwrap_or_default()
    }

    /// Slabs that cannot be emptied.
    pub(super) fn pinned_slabs(&self) -> Vec<u64> {
        self.pinned_slabs.keys().copied().collect()
    }

    pub(super) fn total(&self) -> Account {
        self.total
    }

    pub(super) fn of(&self, class: &CacheClass) -> Account {
        self.classes.get(class).copied().unwrap_or_default()
    }

    pub(super) fn classes(&self) -> impl Iterator<Item = (&CacheClass, Account)> {
        self.classes.iter().map(|(class, account)| (class, *account))
    }

    /// All blocks that can be given up, the one used longest ago first, with their
    /// generations.
    pub(super) fn by_age(&self) -> Vec<(BlockId, CacheClass, u64, u64)> {
        let mut blocks: Vec<_> = self
            .blocks
            .iter()
            .filter(|(_, kept)| kept.pins == 0)
            .map(|(id, kept)| {
                let slot_bytes = kept.bytes.padded().len() as u64;
                (kept.used, (*id, kept.class.clone(), kept.generation, slot_bytes))
            })
            .collect();
        blocks.sort_unstable_by_key(|(used, _)| *used);
        blocks.into_iter().map(|(_, block)| block).collect()
    }

    pub(super) fn candidates(&self, named: &Named) -> Vec<Candidate> {
        let candidate = |(id, kept): (&BlockId, &Kept)| Candidate {
            id: *id,
            class: kept.class.clone(),
            slab: kept.bytes.slab(),
            slot_bytes: kept.bytes.padded().len() as u64,
            used: kept.used,
            leased: kept.bytes.is_shared(named),
        };
        self.blocks.iter().filter(|(_, kept)| kept.pins == 0).map(candidate).collect()
    }
}

fn subtract(accounts: &mut HashMap<CacheClass, Account>, class: &CacheClass, account: Account) {
    if let Some(of_class) = accounts.get_mut(class) {
        of_class.subtract(account);
        if of_class.blocks == 0 {
            accounts.remove(class);
        }
    }
}

impl Account {
    pub(super) fn add(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.bytes += other.bytes;
    }

    fn subtract(&mut self, other: Self) {
        self.blocks -= other.blocks;
        self.bytes -= other.bytes;
    }
}
