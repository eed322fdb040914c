//! What is mapped and what is free: a pool's bookkeeping, without memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::PoolSlab;

#[cfg(test)]
mod tests;

/// A slab is at most this large: what another process maps at once.
const SLAB_BYTES: u64 = 1 << 30;
/// A slab is at most this part of the capacity, so that giving one up for another slot
/// size costs little of what is kept.
const SLABS_AT_LEAST: u64 = 64;
/// How long a device that had no memory is left alone, at first ...
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// ... and at most: workers that end give their memory back within seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What is mapped and what is free.
#[derive(Debug)]
pub(super) struct State {
    capacity: u64,
    granularity: u64,
    /// Bytes of slabs, those included that are being made or given back.
    mapped: u64,
    /// Those of them that are being given back: a new slab may be counted already for
    /// which they make room.
    retiring: u64,
    /// Bytes of slots in use.
    held: u64,
    slabs: BTreeMap<u64, Entry>,
    /// Empty slabs that stand in the way of others, but workers have them mapped, and
    /// since when.
    wanted: BTreeMap<u64, Instant>,
    /// The device had no memory: until when it is left alone, and for how long.
    pause: Option<(Instant, Duration)>,
}

#[derive(Debug)]
struct Entry {
    slab: Arc<PoolSlab>,
    slots: u32,
    free: Vec<u32>,
    /// How many [`SharedDeviceSlab`](crate::SharedDeviceSlab)s there are of it.
    shares: u32,
}

/// What to do for a slot.
#[derive(Debug)]
pub(super) enum Plan {
    /// It was taken: this index of this slab.
    Take(Arc<PoolSlab>, u32),
    /// There is room for a slab of so many bytes, once these are given back.
    Make { bytes: u64, retired: Vec<Arc<PoolSlab>> },
    /// There is neither a free slot nor room.
    Short,
}

/// A slab, for choosing which one to empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlabView {
    pub(crate) id: u64,
    pub(crate) slot_bytes: u64,
    pub(crate) bytes: u64,
    pub(crate) slots_used: u32,
    /// Whether workers have it mapped.
    pub(crate) shared: bool,
}

impl State {
    pub(super) fn new(capacity: u64, granularity: u64) -> Self {
        Self {
            capacity,
            granularity: granularity.max(1),
            mapped: 0,
            retiring: 0,
            held: 0,
            slabs: BTreeMap::new(),
            wanted: BTreeMap::new(),
            pause: None,
        }
    }

    pub(super) fn mapped(&self) -> u64 {
        self.mapped.saturating_sub(self.retiring)
    }

    pub(super) fn held(&self) -> u64 {
        self.held
    }

    pub(super) fn asks_again(&self) -> Option<Instant> {
        self.pause.map(|(until, _)| until)
    }

    /// Finds a slot of this size, in the fullest slab that has one, so that others may
    /// run empty; or room for a slab.
    pub(super) fn plan(&mut self, slot_bytes: u64, now: Instant) -> Plan {
        if let Some((slab, index)) = self.take(slot_bytes) {
            return Plan::Take(slab, index);
        }
        let Some(least) = self.slab_bytes(slot_bytes, 1) else { return Plan::Short };
        let pausing = self.pause.is_some_and(|(until, _)| now < until);
        // While the device has none, there is only what is given back.
        let mut room = if pausing { 0 } else { self.capacity.saturating_sub(self.mapped) };
        let mut empty = Vec::new();
        if room < least {
            let (mut spare, shared): (Vec<&Entry>, Vec<&Entry>) = self
                .slabs
                .values()
                .filter(|entry| entry.is_empty())
                .partition(|entry| entry.shares == 0);
            spare.sort_by_key(|entry| std::cmp::Reverse(entry.bytes()));
            for entry in spare {
                if room < least {
                    room = room.saturating_add(entry.bytes());
                    empty.push(entry.slab.id);
                }
            }
            if room < least {
                for entry in shared {
                    self.wanted.entry(entry.slab.id).or_insert(now);
                }
                return Plan::Short;
            }
        }
        let retired: Vec<Arc<PoolSlab>> =
            empty.iter().filter_map(|id| Some(self.slabs.remove(id)?.slab)).collect();
        self.wanted.retain(|id, _| self.slabs.contains_key(id));
        self.retiring += retired.iter().map(|slab| slab.memory.bytes()).sum::<u64>();
        // As much again as there is of this size, so that sizes which are rare take
        // little and common ones come to large slabs soon.
        let same = self.slabs.values().filter(|entry| entry.slab.slot_bytes == slot_bytes);
        let same: u64 = same.map(Entry::bytes).sum();
        let limit = (self.capacity / SLABS_AT_LEAST).min(SLAB_BYTES);
        // Rounded down, so that what is rounded up again stays within the room.
        let wish = same.min(limit).min(room - room % self.granularity);
        let bytes = self.slab_bytes(slot_bytes, wish / slot_bytes.max(1)).unwrap_or(least);
        self.mapped += bytes;
        Plan::Make { bytes, retired }
    }

    fn take(&mut self, slot_bytes: u64) -> Option<(Arc<PoolSlab>, u32)> {
        let entry = self
            .slabs
            .values_mut()
            .filter(|entry| entry.slab.slot_bytes == slot_bytes && !entry.free.is_empty())
            .min_by_key(|entry| entry.free.len())?;
        let index = entry.free.pop()?;
        self.held += slot_bytes;
        self.wanted.remove(&entry.slab.id);
        Some((Arc::clone(&entry.slab), index))
    }

    /// What to ask for after the device did not have `bytes`: half the slots, or `None` if
    /// that was the least that holds one.
    pub(super) fn smaller(&self, slot_bytes: u64, bytes: u64) -> Option<u64> {
        let least = self.slab_bytes(slot_bytes, 1)?;
        if bytes <= least {
            return None;
        }
        // Less than `bytes`, which is more than one unit of the granularity.
        self.slab_bytes(slot_bytes, bytes / slot_bytes.max(1) / 2)
    }

    /// The bytes of a slab of so many slots, at least one. What a slab has beyond whole
    /// slots nobody can use: that is less than the granularity, never a part of a slot
    /// that is larger. `None` when it overflows.
    fn slab_bytes(&self, slot_bytes: u64, slots: u64) -> Option<u64> {
        slot_bytes.checked_mul(slots.max(1))?.checked_next_multiple_of(self.granularity)
    }

    /// The device had no memory. Several who ask at once are one question.
    pub(super) fn had_none(&mut self, now: Instant) {
        let pause = match self.pause {
            Some((until, _)) if now < until => return,
            Some((_, pause)) => (pause * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        self.pause = Some((now + pause, pause));
    }

    /// Slabs that workers are to give up.
    pub(super) fn wanted(&self) -> &BTreeMap<u64, Instant> {
        &self.wanted
    }

    /// A slab was made; its bytes were counted by the plan.
    pub(super) fn add(&mut self, slab: Arc<PoolSlab>) {
        let slots = slab.memory.bytes() / slab.slot_bytes;
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        let free = (0..slots).rev().collect();
        self.slabs.insert(slab.id, Entry { slab, slots, free, shares: 0 });
        self.pause = None;
    }

    /// A slab that a plan retired was given back.
    pub(super) fn retired(&mut self, bytes: u64) {
        self.retiring = self.retiring.saturating_sub(bytes);
        self.mapped = self.mapped.saturating_sub(bytes);
    }

    /// Bytes that were counted by a plan were not made after all.
    pub(super) fn abandoned(&mut self, bytes: u64) {
        self.mapped = self.mapped.saturating_sub(bytes);
    }

    /// A slot is not in use any more.
    pub(super) fn free(&mut self, slab: u64, index: u32) {
        if let Some(entry) = self.slabs.get_mut(&slab) {
            entry.free.push(index);
            self.held = self.held.saturating_sub(entry.slab.slot_bytes);
        }
    }

    /// What a slot takes; `None` if the slab has no such slot.
    pub(super) fn slot_bytes(&self, slab: u64, index: u32) -> Option<u64> {
        let entry = self.slabs.get(&slab).filter(|entry| index < entry.slots)?;
        Some(entry.slab.slot_bytes)
    }

    /// A worker gets the slab.
    pub(super) fn share(&mut self, slab: u64) {
        if let Some(entry) = self.slabs.get_mut(&slab) {
            entry.shares += 1;
        }
    }

    /// It has given it up.
    pub(super) fn unshare(&mut self, slab: u64) {
        if let Some(entry) = self.slabs.get_mut(&slab) {
            entry.shares -= 1;
        }
    }

    pub(super) fn views(&self) -> Vec<SlabView> {
        let view = |entry: &Entry| SlabView {
            id: entry.slab.id,
            slot_bytes: entry.slab.slot_bytes,
            bytes: entry.bytes(),
            slots_used: entry.slots - u32::try_from(entry.free.len()).unwrap_or(entry.slots),
            shared: entry.shares > 0,
        };
        self.slabs.values().map(view).collect()
    }
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.slab.memory.bytes()
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.slots as usize
    }
}
