//! Where the blocks of one generation lie: written by the daemon, read by workers.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::entry::Entry;
use crate::error::{Error, Kind};
use crate::header::{HEADER_BYTES, HEADER_WORDS, Header};
use crate::memory::{Memory, ReadOnly, Writers};
use crate::protocol;
use crate::sync::{AtomicU64, Ordering};

/// The daemon's side: a word for each block of a generation, by its ordinal.
///
/// Workers map the same memory, and the kernel keeps them from writing it. To drop
/// a directory takes nothing from those who have it mapped: take its entries out
/// first.
#[derive(Debug)]
pub struct Directory {
    memory: Memory,
    count: u32,
}

impl Directory {
    /// Makes an empty directory for `count` blocks: 8 bytes each, and a page. Memory
    /// is taken as it is written or read, page by page. `epoch` is told to workers.
    pub fn create(count: u32, epoch: u64) -> Result<Self, Error> {
        let memory = Memory::create(Kind::Directory, bytes(count), Writers::Maker)?;
        let directory = Self { memory, count };
        let header = directory.memory.words(0..HEADER_WORDS).unwrap_or_default();
        Header { count, epoch }.write(Kind::Directory, header);
        Ok(directory)
    }

    /// To be sent to workers, who make a [`DirectoryView`] of it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.descriptor()
    }

    /// How many blocks it is for.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// What it says of a block now.
    pub fn get(&self, ordinal: u32) -> Option<Entry> {
        Entry::from_word(self.word(ordinal).ok()?.load(Ordering::Relaxed))
    }

    /// Lets workers read a block where `entry` says. All bytes of the slot must
    /// have been written by then, and stay until the entry is retired. Returns the
    /// entry that was there, whose slot is to be retired as well: see
    /// [`Workers::named`](crate::Workers::named).
    pub fn publish(&self, ordinal: u32, entry: Entry) -> Result<Option<Entry>, Error> {
        Ok(protocol::publish(self.word(ordinal)?, entry))
    }

    /// Takes an entry out, if it is still there, and says whether it was. From then
    /// on no worker begins to read there by this directory; who reads already is
    /// found by [`Workers::named`](crate::Workers::named).
    pub fn unpublish(&self, ordinal: u32, entry: Entry) -> bool {
        self.word(ordinal).is_ok_and(|word| protocol::unpublish(word, entry))
    }

    fn word(&self, ordinal: u32) -> Result<&AtomicU64, Error> {
        let count = self.count;
        let word = (ordinal < count).then(|| index(ordinal));
        let word = word.and_then(|at| self.memory.words(at..at + 1)?.first());
        word.ok_or(Error::Ordinal { ordinal, count })
    }
}

/// A worker's side.
#[derive(Debug)]
pub struct DirectoryView {
    memory: ReadOnly,
    header: Header,
}

impl DirectoryView {
    /// Maps a directory that the daemon has sent.
    pub fn receive(file: OwnedFd) -> Result<Self, Error> {
        let kind = Kind::Directory;
        let memory = ReadOnly::receive(kind, file)?;
        let header = Header::read(kind, |at| memory.load(at))?;
        let (least, found) = (bytes(header.count), memory.bytes() as u64);
        if found < least {
            return Err(Error::Size { kind, bytes: found, least });
        }
        Ok(Self { memory, header })
    }

    /// How many blocks it is for.
    pub fn count(&self) -> u32 {
        self.header.count
    }

    /// Which daemon wrote it: one that was started anew has another number.
    pub fn epoch(&self) -> u64 {
        self.header.epoch
    }

    /// What it says of a block now: a hint, since nothing keeps the slot as it is.
    /// [`Hazards::hold`](crate::Hazards::hold) does. `None` as well for an ordinal that it does not
    /// have, and in a child of the process that mapped it.
    pub fn get(&self, ordinal: u32) -> Option<Entry> {
        Entry::from_word(self.load(ordinal)?)
    }

    /// A block's word; `None` only where there is none to read.
    pub(crate) fn load(&self, ordinal: u32) -> Option<u64> {
        if ordinal < self.header.count { self.memory.load(index(ordinal)) } else { None }
    }
}

/// Of the whole.
fn bytes(count: u32) -> u64 {
    (HEADER_BYTES + u64::from(count) * 8).next_multiple_of(HEADER_BYTES)
}

/// Which word of the memory is an ordinal's.
fn index(ordinal: u32) -> usize {
    HEADER_WORDS + ordinal as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::entry::Place;

    fn entry(version: u16, slot: u32) -> Entry {
        Entry::new(version, Place::new(1, slot).expect("24 bits"))
    }

    fn view(directory: &Directory) -> DirectoryView {
        let file = directory.descriptor().try_clone_to_owned().expect("a descriptor");
        DirectoryView::receive(file).expect("it was made for this")
    }

    #[test]
    fn a_worker_sees_what_the_daemon_publishes() {
        let directory = Directory::create(1000, 77).expect("memory");
        let view = view(&directory);
        assert_eq!((view.count(), view.epoch()), (1000, 77));
        assert_eq!(view.get(999), None);
        assert_eq!(directory.publish(999, entry(1, 5)).expect("it exists"), None);
        assert_eq!(view.get(999), Some(entry(1, 5)));
        assert_eq!(view.get(998), None);
        assert!(directory.unpublish(999, entry(1, 5)));
        assert_eq!(view.get(999), None);
    }

    #[test]
    fn there_is_nothing_beyond_the_last_ordinal() {
        // Its words would still lie on the directory's last page.
        let directory = Directory::create(3, 0).expect("memory");
        let refused = directory.publish(3, entry(1, 1)).map_err(|error| error.to_string());
        assert_eq!(refused, Err("a directory of 3 blocks has no ordinal 3".to_owned()));
        assert!(!directory.unpublish(u32::MAX, entry(1, 1)));
        assert_eq!(view(&directory).get(3), None);
        let empty = Directory::create(0, 0).expect("memory");
        assert_eq!(view(&empty).get(0), None);
    }

    #[test]
    fn a_directory_shorter_than_its_header_says_is_refused() {
        let memory = Memory::create(Kind::Directory, 8192, Writers::Maker).expect("memory");
        let header = memory.words(0..HEADER_WORDS).expect("a page");
        Header { count: 513, epoch: 0 }.write(Kind::Directory, header);
        let file = memory.descriptor().try_clone_to_owned().expect("a descriptor");
        let refused = DirectoryView::receive(file).err();
        let short = matches!(refused, Some(Error::Size { bytes: 8192, least: 12288, .. }));
        assert!(short, "{refused:?}");
    }

    proptest! {
        #[test]
        fn a_directory_is_a_map(steps in prop::collection::vec((0_u32..6, 0_u16..3, any::<bool>()), 1..60)) {
            let directory = Directory::create(5, 0).expect("memory");
            let view = view(&directory);
            let mut reference = BTreeMap::new();
            for (ordinal, version, publish) in steps {
                let entry = entry(version, 1);
                if ordinal == 5 {
                    prop_assert!(directory.publish(ordinal, entry).is_err());
                } else if publish {
                    let before = directory.publish(ordinal, entry).expect("it exists");
                    prop_assert_eq!(before, reference.insert(ordinal, entry));
                } else {
                    let there = reference.get(&ordinal) == Some(&entry);
                    if there {
                        reference.remove(&ordinal);
                    }
                    prop_assert_eq!(directory.unpublish(ordinal, entry), there);
                }
                for ordinal in 0..6 {
                    prop_assert_eq!(view.get(ordinal), reference.get(&ordinal).copied());
                }
            }
        }
    }
}
