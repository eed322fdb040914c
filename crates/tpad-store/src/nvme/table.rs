//! What is on disk, as far as it is known: sizes, uses, and which block goes
//! when room is needed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use tpad_manifest::BlockId;

/// The blocks on disk.
///
/// **Invariant:** `bytes` is the sum of the entries and of what is being
/// written, and never above the capacity: room is made before it is taken.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<BlockId, Entry>,
    /// Blocks of no home class, least recently used first.
    others: BTreeMap<u64, BlockId>,
    /// Blocks whose home this level is, likewise: they go last.
    home: BTreeMap<u64, BlockId>,
    /// Being written or deleted: whoever else comes leaves them alone.
    busy: HashSet<BlockId>,
    homes: BTreeSet<String>,
    classes: BTreeMap<String, Account>,
    bytes: u64,
    clock: u64,
}

/// What there is of a class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    /// Its key in `others` or `home`.
    used: u64,
    class: String,
}

/// A block that goes. Its file is to be deleted, then [`Table::deleted`] or, if it
/// cannot be, [`Table::restore`] is to be called.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) id: BlockId,
    bytes: u64,
    class: String,
}

/// Why a block gets no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// It is there, being written, or being deleted.
    Known,
    /// What is there may not go for it.
    Full,
}

impl Table {
    pub(super) fn contains(&self, id: &BlockId) -> bool {
        self.entries.contains_key(id)
    }

    pub(super) fn blocks(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What there is of a class.
    pub(super) fn of(&self, class: &str) -> Account {
        self.classes.get(class).copied().unwrap_or_default()
    }

    /// Counts a use. Says whether the block is there.
    pub(super) fn touch(&mut self, id: &BlockId) -> bool {
        let Some(entry) = self.entries.get_mut(id) else { return false };
        let queue =
            if self.homes.contains(&entry.class) { &mut self.home } else { &mut self.others };
        queue.remove(&entry.used);
        self.clock += 1;
        entry.used = self.clock;
        queue.insert(self.clock, *id);
        true
    }

    /// Takes room for a block that is about to be written, and names the blocks
    /// that have to go for it: at least `free` bytes, whatever the capacity asks.
    pub(super) fn reserve(
        &mut self,
        id: &BlockId,
        class: &str,
        bytes: u64,
        capacity: u64,
        free: u64,
    ) -> Result<Vec<Victim>, NoRoom> {
        if self.entries.contains_key(id) || self.busy.contains(id) {
            return Err(NoRoom::Known);
        }
        if bytes > capacity {
            return Err(NoRoom::Full);
        }
        let over = (self.bytes + bytes).saturating_sub(capacity).max(free);
        let chosen = self.choose(over, self.homes.contains(class)).ok_or(NoRoom::Full)?;
        let mut victims = Vec::with_capacity(chosen.len());
        for id in chosen {
            let Some(Entry { bytes, class, .. }) = self.take_out(&id) else { continue };
            self.busy.insert(id);
            victims.push(Victim { id, bytes, class });
        }
        self.bytes += bytes;
        self.busy.insert(*id);
        Ok(victims)
    }

    /// The least recently used blocks of at least `bytes`; `None` if there are
    /// not as many that may go.
    fn choose(&self, bytes: u64, may_take_home: bool) -> Option<Vec<BlockId>> {
        let home = self.home.values().filter(|_| may_take_home);
        let mut victims = Vec::new();
        let mut found = 0u64;
        for id in self.others.values().chain(home) {
            if found >= bytes {
                break;
            }
            found += self.entries.get(id).map_or(0, |entry| entry.bytes);
            victims.push(*id);
        }
        (found >= bytes).then_some(victims)
    }

    /// A victim's file is still there.
    pub(super) fn restore(&mut self, victim: Victim) {
        self.busy.remove(&victim.id);
        self.put_in(victim.id, &victim.class, victim.bytes);
    }

    /// A victim's file is gone.
    pub(super) fn deleted(&mut self, id: &BlockId) {
        self.busy.remove(id);
    }

    /// A block that was reserved is on disk.
    pub(super) fn written(&mut self, id: &BlockId, class: &str, bytes: u64) {
        self.busy.remove(id);
        self.bytes -= bytes;
        self.put_in(*id, class, bytes);
    }

    /// A block that was reserved was not written.
    pub(super) fn failed(&mut self, id: &BlockId, bytes: u64) {
        self.busy.remove(id);
        self.bytes -= bytes;
    }

    /// A block that the scan found. `false` if it is known or being written, or
    /// there is no room for it.
    pub(super) fn found(&mut self, id: BlockId, class: &str, bytes: u64, capacity: u64) -> bool {
        if self.entries.contains_key(&id) || self.busy.contains(&id) {
            return true;
        }
        if self.bytes + bytes > capacity {
            return false;
        }
        self.put_in(id, class, bytes);
        true
    }

    /// Forgets a block. `false` if it is not there or somebody is at it.
    pub(super) fn forget(&mut self, id: &BlockId) -> bool {
        let known = self.take_out(id).is_some();
        if known {
            self.busy.insert(*id);
        }
        known
    }

    /// From here on blocks of these classes go last.
    pub(super) fn set_homes(&mut self, homes: BTreeSet<String>) {
        self.homes = homes;
        self.home.clear();
        self.others.clear();
        for (id, entry) in &self.entries {
            let home = self.homes.contains(&entry.class);
            let queue = if home { &mut self.home } else { &mut self.others };
            queue.insert(entry.used, *id);
        }
    }

    fn put_in(&mut self, id: BlockId, class: &str, bytes: u64) {
        self.clock += 1;
        let entry = Entry { bytes, used: self.clock, class: class.to_owned() };
        let home = self.homes.contains(class);
        let queue = if home { &mut self.home } else { &mut self.others };
        queue.insert(self.clock, id);
        let account = self.classes.entry(class.to_owned()).or_default();
        account.blocks += 1;
        account.bytes += bytes;
        self.bytes += bytes;
        self.entries.insert(id, entry);
    }

    fn take_out(&mut self, id: &BlockId) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        self.others.remove(&entry.used);
        self.home.remove(&entry.used);
        self.bytes -= entry.bytes;
        if let Some(account) = self.classes.get_mut(&entry.class) {
            account.blocks -= 1;
            account.bytes -= entry.bytes;
            if account.blocks == 0 {
                self.classes.remove(&entry.class);
            }
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> BlockId {
        BlockId::from_bytes([n; 32])
    }

    fn write(
        table: &mut Table,
        n: u8,
        class: &str,
        bytes: u64,
        capacity: u64,
    ) -> Option<Vec<BlockId>> {
        let victims = table.reserve(&id(n), class, bytes, capacity, 0).ok()?;
        victims.iter().for_each(|victim| table.deleted(&victim.id));
        table.written(&id(n), class, bytes);
        assert!(table.bytes() <= capacity);
        Some(victims.into_iter().map(|victim| victim.id).collect())
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let mut table = Table::default();
        for n in 1..=3 {
            assert_eq!(write(&mut table, n, "a", 10, 30), Some(vec![]));
        }
        assert!(table.touch(&id(1)));
        assert_eq!(write(&mut table, 4, "a", 15, 30), Some(vec![id(2), id(3)]));
        assert_eq!((table.blocks(), table.bytes()), (2, 25));
        assert_eq!(table.of("a"), Account { blocks: 2, bytes: 25 });
        assert_eq!(table.of("b"), Account::default());
        assert_eq!(write(&mut table, 5, "a", 31, 30), None, "larger than all");
        assert_eq!(write(&mut table, 1, "a", 10, 30), None, "there already");
    }

    #[test]
    fn blocks_at_home_make_room_for_their_like_only() {
        let mut table = Table::default();
        write(&mut table, 1, "home", 10, 30);
        table.set_homes(["home".to_owned()].into());
        write(&mut table, 2, "cold", 10, 30);
        write(&mut table, 3, "home", 10, 30);
        for n in 4..9 {
            assert_eq!(write(&mut table, n, "cold", 10, 30).map(|v| v.len()), Some(1));
        }
        assert_eq!(write(&mut table, 9, "cold", 20, 30), None);
        assert!(table.contains(&id(1)) && table.contains(&id(3)));
        assert_eq!(write(&mut table, 10, "home", 20, 30), Some(vec![id(8), id(1)]));
        table.set_homes(BTreeSet::new());
        assert_eq!(write(&mut table, 11, "cold", 30, 30).map(|v| v.len()), Some(2));
    }

    #[test]
    fn whoever_is_written_or_deleted_is_left_alone() {
        let mut table = Table::default();
        assert_eq!(table.reserve(&id(1), "a", 10, 10, 0), Ok(vec![]));
        assert_eq!(table.reserve(&id(1), "a", 10, 10, 0), Err(NoRoom::Known));
        assert_eq!(table.reserve(&id(2), "a", 1, 10, 0), Err(NoRoom::Full), "the room is taken");
        table.failed(&id(1), 10);
        assert_eq!(table.bytes(), 0);
        write(&mut table, 1, "a", 10, 10);
        assert!(table.forget(&id(1)));
        assert_eq!(table.reserve(&id(1), "a", 10, 10, 0), Err(NoRoom::Known), "being deleted");
        table.deleted(&id(1));
        assert!(table.reserve(&id(1), "a", 10, 10, 0).is_ok());
    }

    #[test]
    fn room_is_made_beyond_the_capacity_when_the_disk_asks_for_it() {
        let mut table = Table::default();
        for n in 1..=3 {
            write(&mut table, n, "a", 10, 100);
        }
        let victims = table.reserve(&id(9), "a", 5, 100, 15).expect("room");
        assert_eq!(victims.len(), 2);
        assert_eq!(table.reserve(&id(8), "a", 5, 100, 15), Err(NoRoom::Full));
        for victim in victims {
            table.restore(victim);
        }
        assert_eq!((table.blocks(), table.bytes()), (3, 35));
    }
}
