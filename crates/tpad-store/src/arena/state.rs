//! What is mapped and what is free: the arena's bookkeeping, without memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::mapping::PAGE_BYTES;
use super::slot::{Place, Slab};

/// A slab is at most this large: what CUDA registers and what another process
/// maps at once.
const SLAB_BYTES: u64 = 1 << 30;
/// A slab is at most this part of the capacity, so that giving one up for
/// another slot size costs little of what is kept.
const SLABS_AT_LEAST: u64 = 64;

/// What is mapped and what is free.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Bytes of slabs, those included that are being mapped or unmapped.
    mapped: u64,
    /// Those of them that are being unmapped: a new slab may be counted already
    /// for which they make room.
    retiring: u64,
    /// Bytes of slots in use.
    held: u64,
    slabs: BTreeMap<u64, Entry>,
    /// Empty slabs that stand in the way of others, but other processes have them
    /// mapped, and since when.
    wanted: BTreeMap<u64, Instant>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    slab: Arc<Slab>,
    slots: u32,
    free: Vec<u32>,
    /// How many [`SharedSlab`](super::SharedSlab)s there are of it.
    shares: u32,
    /// Being emptied for another slot size: gives no slots.
    condemned: bool,
}

/// What to do for a slot.
#[derive(Debug)]
pub(super) enum Plan {
    /// It was taken: this index of this slab.
    Take(Arc<Slab>, u32),
    /// There is room for a slab of so many slots, once these are unmapped.
    Map { slots: u32, retired: Vec<Arc<Slab>> },
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
    /// Whether other processes have it mapped.
    pub(crate) shared: bool,
}

/// The slot that an image of `bytes` goes into: padded to a 32nd of its power of
/// two, so that there are few sizes and at most 3 % is lost. `None` when it
/// overflows.
#[must_use]
pub fn slot_bytes(bytes: u64) -> Option<u64> {
    let bytes = bytes.max(1);
    let step = (1u64 << bytes.ilog2()) / 32;
    bytes.checked_next_multiple_of(step.max(PAGE_BYTES))
}

impl State {
    pub(super) fn mapped(&self) -> u64 {
        self.mapped.saturating_sub(self.retiring)
    }

    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Finds a slot of this size, in the fullest slab that has one, so that
    /// others may run empty; or room for a slab.
    pub(super) fn plan(&mut self, slot_bytes: u64, capacity: u64) -> Plan {
        if let Some((slab, index)) = self.take(slot_bytes) {
            return Plan::Take(slab, index);
        }
        let mut room = capacity.saturating_sub(self.mapped);
        let mut empty = Vec::new();
        if room < slot_bytes {
            let (mut spare, mapped): (Vec<&Entry>, Vec<&Entry>) = self
                .slabs
                .values()
                .filter(|entry| entry.is_empty())
                .partition(|entry| entry.shares == 0);
            spare.sort_by_key(|entry| (!entry.condemned, std::cmp::Reverse(entry.bytes())));
            for entry in spare {
                if room < slot_bytes {
                    room = room.saturating_add(entry.bytes());
                    empty.push(entry.slab.id);
                }
            }
            if room < slot_bytes {
                let now = Instant::now();
                for entry in mapped {
                    self.wanted.entry(entry.slab.id).or_insert(now);
                }
                return Plan::Short;
            }
        }
        let retired: Vec<Arc<Slab>> =
            empty.iter().filter_map(|id| Some(self.slabs.remove(id)?.slab)).collect();
        self.wanted.retain(|id, _| self.slabs.contains_key(id));
        self.retiring += retired.iter().map(|slab| slab.mapping.bytes() as u64).sum::<u64>();
        // As much again as there is of this size, so that sizes which are rare
        // take little and common ones come to large slabs soon.
        let same: u64 =
            self.slabs.values().filter(|e| e.slot_bytes() == slot_bytes).map(Entry::bytes).sum();
        let limit = (capacity / SLABS_AT_LEAST).min(SLAB_BYTES);
        let wanted = same.min(limit).min(room) / slot_bytes;
        let slots = u32::try_from(wanted.max(1)).unwrap_or(u32::MAX);
        self.mapped += u64::from(slots) * slot_bytes;
        Plan::Map { slots, retired }
    }

    /// Takes a free slot, in the fullest slab that has one.
    pub(super) fn take(&mut self, slot_bytes: u64) -> Option<(Arc<Slab>, u32)> {
        let entry = self
            .slabs
            .values_mut()
            .filter(|e| e.slot_bytes() == slot_bytes && !e.condemned && !e.free.is_empty())
            .min_by_key(|entry| entry.free.len())?;
        let index = entry.free.pop()?;
        self.held += slot_bytes;
        self.wanted.remove(&entry.slab.id);
        Some((Arc::clone(&entry.slab), index))
    }

    /// Slabs that other processes are to give up.
    pub(super) fn wanted(&self) -> &BTreeMap<u64, Instant> {
        &self.wanted
    }

    pub(super) fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// A slab was mapped; its bytes were counted by the plan.
    pub(super) fn add(&mut self, slab: Arc<Slab>, slots: u32) {
        let free = (0..slots).rev().collect();
        self.slabs.insert(slab.id, Entry { slab, slots, free, shares: 0, condemned: false });
    }

    /// A slab that a plan retired was unmapped.
    pub(super) fn retired(&mut self, bytes: u64) {
        self.retiring = self.retiring.saturating_sub(bytes);
        self.mapped = self.mapped.saturating_sub(bytes);
    }

    /// A slab that was counted by a plan was not mapped after all.
    pub(super) fn abandoned(&mut self, bytes: u64) {
        self.mapped = self.mapped.saturating_sub(bytes);
    }

    /// A slot is not in use any more.
    pub(super) fn free(&mut self, slab: u64, index: u32) {
        if let Some(entry) = self.slabs.get_mut(&slab) {
            entry.free.push(index);
            self.held = self.held.saturating_sub(entry.slot_bytes());
        }
    }

    /// A slot that is or was in use; `None` if there is none of this name.
    pub(super) fn place(&self, slab: u64, index: u32) -> Option<Place> {
        let entry = self.slabs.get(&slab).filter(|entry| index < entry.slots)?;
        let slot_bytes = entry.slot_bytes();
        Some(Place { slab, offset: u64::from(index) * slot_bytes, slot_bytes })
    }

    /// Another process gets the slab.
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

    pub(super) fn condemn(&mut self, slabs: &[u64], condemned: bool) {
        for id in slabs {
            if let Some(entry) = self.slabs.get_mut(id) {
                entry.condemned = condemned;
            }
        }
    }

    pub(super) fn views(&self) -> Vec<SlabView> {
        let view = |entry: &Entry| SlabView {
            id: entry.slab.id,
            slot_bytes: entry.slot_bytes(),
            bytes: entry.bytes(),
            slots_used: entry.slots - u32::try_from(entry.free.len()).unwrap_or(entry.slots),
            shared: entry.shares > 0,
        };
        self.slabs.values().map(view).collect()
    }
}

impl Entry {
    fn slot_bytes(&self) -> u64 {
        self.slab.slot_bytes as u64
    }

    fn bytes(&self) -> u64 {
        self.slab.mapping.bytes() as u64
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.slots as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_waste_little() {
        assert_eq!(slot_bytes(0), Some(4096));
        assert_eq!(slot_bytes(1), Some(4096));
        assert_eq!(slot_bytes(4097), Some(8192));
        assert_eq!(slot_bytes(336 << 20), Some(336 << 20));
        assert_eq!(slot_bytes(u64::MAX), None);
        for bytes in (1..2000u64).map(|n| n * 70_001) {
            let slot = slot_bytes(bytes).expect("small");
            assert!(slot >= bytes && slot.is_multiple_of(4096));
            assert!(slot - bytes < (bytes / 32).max(4096), "{bytes} in {slot}");
        }
    }
}
