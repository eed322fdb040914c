//! The first page of each piece: what it is, and for whom.

use crate::error::{Error, Kind};
use crate::sync::{AtomicU64, Ordering};

/// A page, so that what follows is aligned for anything and shares no page with it.
pub(crate) const HEADER_BYTES: u64 = 4096;
/// What follows, in words.
pub(crate) const HEADER_WORDS: usize = 512;
/// Stepped by every change of what is where or what it means.
pub(crate) const LAYOUT: u64 = 1;

/// Words 0 to 3: magic, layout, count, epoch. The rest of the page is zero.
///
/// It is written before the descriptor is sent and not after. Only the receiver
/// reads it: in memory that a worker writes, the daemon believes nothing of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    /// Of ordinals or cells.
    pub(crate) count: u32,
    /// Of the daemon's process: another one makes everything anew.
    pub(crate) epoch: u64,
}

impl Header {
    pub(crate) fn write(self, kind: Kind, words: &[AtomicU64]) {
        let header = [magic(kind), LAYOUT, u64::from(self.count), self.epoch];
        for (word, value) in words.iter().zip(header) {
            // The message that carries the descriptor orders it.
            word.store(value, Ordering::Relaxed);
        }
    }

    /// `load` reads a word of the memory; `None` beyond its end.
    pub(crate) fn read(kind: Kind, load: impl Fn(usize) -> Option<u64>) -> Result<Self, Error> {
        let foreign = Error::Foreign { kind };
        let [Some(found), Some(layout), Some(count), Some(epoch)] = [0, 1, 2, 3].map(load) else {
            return Err(foreign);
        };
        if found != magic(kind) {
            return Err(foreign);
        }
        if layout != LAYOUT {
            return Err(Error::Layout { kind, found: layout, known: LAYOUT });
        }
        let count = u32::try_from(count).map_err(|_| foreign)?;
        Ok(Self { count, epoch })
    }
}

/// Eight letters, to be read in a dump.
const fn magic(kind: Kind) -> u64 {
    u64::from_ne_bytes(match kind {
        Kind::Directory => *b"tpad-dir",
        Kind::Hazards => *b"tpad-haz",
        Kind::Uses => *b"tpad-use",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written_and_only_for_what_it_is() {
        let words: Vec<AtomicU64> = (0..HEADER_WORDS).map(|_| AtomicU64::new(0)).collect();
        let load = |at: usize| words.get(at).map(|word| word.load(Ordering::Relaxed));
        let nothing = Header::read(Kind::Directory, load);
        assert!(matches!(nothing, Err(Error::Foreign { .. })), "{nothing:?}");
        let header = Header { count: 7, epoch: u64::MAX };
        header.write(Kind::Directory, &words);
        assert_eq!(Header::read(Kind::Directory, load).ok(), Some(header));
        let other = Header::read(Kind::Hazards, load);
        assert!(matches!(other, Err(Error::Foreign { kind: Kind::Hazards })), "{other:?}");
        let short = Header::read(Kind::Directory, |at| load(at).filter(|_| at < 3));
        assert!(matches!(short, Err(Error::Foreign { .. })), "{short:?}");
        words[1].store(2, Ordering::Relaxed);
        let newer = Header::read(Kind::Directory, load);
        assert!(matches!(newer, Err(Error::Layout { found: 2, known: 1, .. })), "{newer:?}");
    }
}
