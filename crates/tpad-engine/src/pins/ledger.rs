//! What pins hold together.

use std::collections::HashMap;

use tpad_manifest::BlockId;

use super::Totals;

/// Counts each block once, however many pins hold it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    blocks: HashMap<BlockId, Entry>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    holders: u32,
    bytes: u64,
}

impl Ledger {
    /// What `blocks` would add. Each may appear once.
    pub(super) fn new_bytes(&self, blocks: &[(BlockId, u64)]) -> u64 {
        let new = blocks.iter().filter(|(id, _)| !self.blocks.contains_key(id));
        new.fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes))
    }

    pub(super) fn add(&mut self, blocks: &[(BlockId, u64)]) {
        for (id, bytes) in blocks {
            let entry = self.blocks.entry(*id).or_insert(Entry { holders: 0, bytes: *bytes });
            if entry.holders == 0 {
                self.bytes = self.bytes.saturating_add(*bytes);
            }
            entry.holders += 1;
        }
    }

    pub(super) fn remove(&mut self, blocks: &[(BlockId, u64)]) {
        for (id, _) in blocks {
            let Some(entry) = self.blocks.get_mut(id) else { continue };
            entry.holders -= 1;
            if entry.holders == 0 {
                self.bytes -= entry.bytes;
                self.blocks.remove(id);
            }
        }
    }

    pub(super) fn totals(&self) -> Totals {
        Totals { blocks: self.blocks.len() as u64, bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_of_two_pins_counts_once_until_the_last_goes() {
        let id = |n: u8| BlockId::of(&[n]);
        let (one, two) = ([(id(1), 10), (id(2), 20)], [(id(2), 20), (id(3), 30)]);
        let mut ledger = Ledger::default();
        ledger.add(&one);
        assert_eq!(ledger.new_bytes(&two), 30);
        ledger.add(&two);
        assert_eq!(ledger.totals(), Totals { blocks: 3, bytes: 60 });
        ledger.remove(&one);
        assert_eq!(ledger.totals(), Totals { blocks: 2, bytes: 50 });
        ledger.remove(&two);
        assert_eq!(ledger.totals(), Totals::default());
    }
}
