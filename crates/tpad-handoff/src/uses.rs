//! How often a worker used which block: what the daemon cannot see otherwise, and
//! needs to know to keep the right ones.

use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::error::{Error, Kind};
use crate::header::{HEADER_BYTES, HEADER_WORDS, Header};
use crate::memory::{Memory, Writers};

/// Counters under one bit of the summary: 2 KiB, half a page. With fewer the
/// summary grows, with more the daemon reads more for one use.
const GROUP: u32 = 512;

/// Groups that one call of [`UsesView::drain`] reads, about: two million counters
/// or two milliseconds, whatever a worker has set. What is left comes next time.
const GROUPS_PER_DRAIN: u32 = 4096;

/// A worker's side: a counter for each block of a directory.
#[derive(Debug)]
pub struct Uses {
    memory: Memory,
    layout: Layout,
}

impl Uses {
    /// Maps the memory that the daemon has made for this connection and a directory.
    pub fn receive(file: OwnedFd) -> Result<Self, Error> {
        let kind = Kind::Uses;
        let memory = Memory::receive(kind, file)?;
        let header = memory.words(0..HEADER_WORDS).unwrap_or_default();
        let load = |at: usize| Some(header.get(at)?.load(Ordering::Relaxed));
        let layout = Layout::of(Header::read(kind, load)?.count);
        let found = memory.bytes() as u64;
        if found < layout.bytes {
            return Err(Error::Size { kind, bytes: found, least: layout.bytes });
        }
        Ok(Self { memory, layout })
    }

    /// Counts a use of a block. Nothing happens for an ordinal that the directory
    /// does not have, or in a child of the process that mapped the memory.
    ///
    /// A count may reach the daemon only after the next use of a block nearby: it
    /// is never lost, and waiting for it is not worth a fence.
    pub fn count(&self, ordinal: u32) {
        let Some(counter) = self.layout.counter(ordinal) else { return };
        let counter = self.memory.halves(counter..counter + 1).and_then(<[_]>::first);
        let (word, bit) = summary(ordinal / GROUP);
        let group = self.memory.words(word..word + 1).and_then(<[_]>::first);
        if let (Some(counter), Some(group)) = (counter, group) {
            counter.fetch_add(1, Ordering::Relaxed);
            // Mostly it is set: then its line stays with all who look at it.
            if group.load(Ordering::Relaxed) & bit == 0 {
                group.fetch_or(bit, Ordering::Release);
            }
        }
    }
}

/// The daemon's side.
#[derive(Debug)]
pub struct UsesView {
    memory: Memory,
    /// As it was made: what the header says by now is the worker's word.
    layout: Layout,
    /// The word of the summary where the next drain begins.
    next: AtomicUsize,
}

impl UsesView {
    /// Makes counters for the `count` blocks of a directory, all zero: 4 bytes
    /// each, and at least two pages. Memory is taken as it is used, page by page.
    pub fn create(count: u32, epoch: u64) -> Result<Self, Error> {
        let layout = Layout::of(count);
        let memory = Memory::create(Kind::Uses, layout.bytes, Writers::Receiver)?;
        let header = memory.words(0..HEADER_WORDS).unwrap_or_default();
        Header { count, epoch }.write(Kind::Uses, header);
        Ok(Self { memory, layout, next: AtomicUsize::new(0) })
    }

    /// To be sent to the worker, which makes [`Uses`] of it.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.descriptor()
    }

    /// Takes what was counted since the last time, as `used(ordinal, uses)`, and
    /// begins anew. Ordinals are of the directory; `uses` is what the worker
    /// wrote, any number but 0. Costs what was used: for a worker that did
    /// nothing, one word is read for each 32,768 blocks.
    pub fn drain(&self, mut used: impl FnMut(u32, u32)) {
        let summary = self.memory.words(self.layout.summary.clone()).unwrap_or_default();
        let Some(start) = self.next.load(Ordering::Relaxed).checked_rem(summary.len()) else {
            return;
        };
        let mut left = GROUPS_PER_DRAIN;
        for step in 0..summary.len() {
            let at = (start + step) % summary.len();
            if left == 0 {
                // Those behind get their turn, whatever those before do.
                self.next.store(at, Ordering::Relaxed);
                return;
            }
            let Some(word) = summary.get(at) else { return };
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // With acquire, a bit that is seen brings the count that set it.
            let groups = word.swap(0, Ordering::Acquire);
            for bit in (0..u64::BITS).filter(|bit| groups >> bit & 1 == 1) {
                self.drain_group(at * 64 + bit as usize, &mut used);
                left = left.saturating_sub(1);
            }
        }
    }

    /// A group beyond the last, whose bit only a worker of bad will sets, is empty.
    fn drain_group(&self, group: usize, used: &mut impl FnMut(u32, u32)) {
        let ordinals = self.layout.group(group);
        let span = self.layout.counters + ordinals.start as usize
            ..self.layout.counters + ordinals.end as usize;
        let counters = self.memory.halves(span).unwrap_or_default();
        for (ordinal, counter) in ordinals.zip(counters) {
            // Mostly it is 0, and an exchange costs as much as many looks.
            if counter.load(Ordering::Relaxed) != 0 {
                let uses = counter.swap(0, Ordering::Relaxed);
                if uses != 0 {
                    used(ordinal, uses);
                }
            }
        }
    }
}

/// What is where.
#[derive(Debug)]
struct Layout {
    count: u32,
    /// A bit for each group, in words of eight bytes.
    summary: Range<usize>,
    /// Where counters begin, in words of four bytes.
    counters: usize,
    /// Of the whole.
    bytes: u64,
}

impl Layout {
    fn of(count: u32) -> Self {
        let words = count.div_ceil(GROUP).div_ceil(u64::BITS);
        let counters = HEADER_BYTES + (u64::from(words) * 8).next_multiple_of(HEADER_BYTES);
        let bytes = (counters + u64::from(count) * 4).next_multiple_of(HEADER_BYTES);
        Self {
            count,
            summary: HEADER_WORDS..HEADER_WORDS + words as usize,
            // A summary is at most 1 MiB.
            counters: (counters / 4) as usize,
            bytes,
        }
    }

    fn counter(&self, ordinal: u32) -> Option<usize> {
        (ordinal < self.count).then_some(self.counters + ordinal as usize)
    }

    /// The ordinals of a group; none if there is no such group.
    fn group(&self, group: usize) -> Range<u32> {
        let group = u32::try_from(group).unwrap_or(u32::MAX);
        let start = group.saturating_mul(GROUP).min(self.count);
        start..start.saturating_add(GROUP).min(self.count)
    }
}

/// The word of the memory and the bit in it that are a group's.
fn summary(group: u32) -> (usize, u64) {
    (HEADER_WORDS + (group / u64::BITS) as usize, 1 << (group % u64::BITS))
}

#[cfg(test)]
mod tests;
