//! Which slots are leased, and how many bytes that is.

use std::collections::{BTreeMap, HashMap};

use tpad_store::Place;

/// Slots that leases name, each counted once.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// How many leases name a slot.
    slots: HashMap<Place, u64>,
    /// How many leased slots a slab has.
    slabs: BTreeMap<u64, u64>,
    bytes: u64,
}

/// Why leases were not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full {
    /// What would be held with them.
    pub(super) wanted: u64,
    /// What may be.
    pub(super) limit: u64,
}

impl Ledger {
    /// Counts a lease of each place, or none if that came to more than `limit`.
    pub(super) fn add(&mut self, places: &[Place], limit: u64) -> Result<(), Full> {
        for place in places {
            let leases = self.slots.entry(*place).or_default();
            *leases += 1;
            if *leases == 1 {
                self.bytes = self.bytes.saturating_add(place.slot_bytes);
                *self.slabs.entry(place.slab).or_default() += 1;
            }
        }
        if self.bytes > limit {
            let wanted = self.bytes;
            self.remove(places);
            return Err(Full { wanted, limit });
        }
        Ok(())
    }

    /// Takes a lease of each place back.
    pub(super) fn remove(&mut self, places: &[Place]) {
        for place in places {
            let Some(leases) = self.slots.get_mut(place) else { continue };
            *leases -= 1;
            if *leases > 0 {
                continue;
            }
            self.slots.remove(place);
            self.bytes = self.bytes.saturating_sub(place.slot_bytes);
            if let Some(slots) = self.slabs.get_mut(&place.slab) {
                *slots -= 1;
                if *slots == 0 {
                    self.slabs.remove(&place.slab);
                }
            }
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of those of these slots, each given once, that no lease names.
    pub(super) fn bytes_beside(&self, places: &[Place]) -> u64 {
        let others = places.iter().filter(|place| !self.slots.contains_key(place));
        others.map(|place| place.slot_bytes).sum()
    }

    /// Whether a leased slot lies in this slab.
    pub(super) fn uses(&self, slab: u64) -> bool {
        self.slabs.contains_key(&slab)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(slab: u64, offset: u64) -> Place {
        Place { slab, offset, slot_bytes: 4096 }
    }

    #[test]
    fn a_slot_counts_once_however_often_it_is_leased() {
        let mut ledger = Ledger::default();
        let (one, two) = (place(1, 0), place(1, 4096));
        assert_eq!(ledger.add(&[one, one, two], 8192), Ok(()));
        assert_eq!(ledger.bytes(), 8192);
        ledger.remove(&[one, two]);
        assert_eq!(ledger.bytes(), 4096, "one is still leased once");
        assert!(ledger.uses(1));
        ledger.remove(&[one]);
        assert_eq!(ledger.bytes(), 0);
        assert!(!ledger.uses(1));
    }

    #[test]
    fn what_does_not_fit_leaves_everything_as_it_was() {
        let mut ledger = Ledger::default();
        ledger.add(&[place(1, 0)], 8192).expect("it fits");
        let full = ledger.add(&[place(1, 0), place(2, 0), place(2, 4096)], 8192);
        assert_eq!(full, Err(Full { wanted: 3 * 4096, limit: 8192 }));
        assert_eq!((ledger.bytes(), ledger.uses(2)), (4096, false));
        ledger.remove(&[place(1, 0)]);
        assert_eq!(ledger.bytes(), 0, "the refused one left no count behind");
    }

    #[test]
    fn what_is_held_beside_leases_is_counted_without_them() {
        let mut ledger = Ledger::default();
        ledger.add(&[place(1, 0)], 8192).expect("it fits");
        assert_eq!(ledger.bytes_beside(&[place(1, 0), place(1, 4096), place(2, 0)]), 8192);
        assert_eq!(ledger.bytes_beside(&[]), 0);
    }

    #[test]
    fn what_is_not_leased_is_not_taken_back() {
        let mut ledger = Ledger::default();
        ledger.remove(&[place(1, 0)]);
        assert_eq!(ledger.bytes(), 0);
    }
}
