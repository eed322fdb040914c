//! What was read beside payload: the frames that bring none, and the heads of those that do.

use super::super::frame::HEAD_BYTES;
use super::super::header::HEADER_BLOCK_BYTES;

/// Read beyond a payload: the heads of the frames that follow. What of it is
/// payload again is copied, so little is taken.
const SPARE_BYTES: usize = 4096;

/// Read where no payload is expected: all of a small reply at once.
const FIRST_BYTES: usize = 8192;

/// A whole header block with its head, and what came with it.
const INPUT_BYTES: usize = HEADER_BLOCK_BYTES + HEAD_BYTES + SPARE_BYTES;

/// Bytes that were read, in order, until they are used up.
pub(super) struct Input {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Input {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; INPUT_BYTES].into(), from: 0, to: 0 }
    }

    /// What was read and is not used up.
    pub(super) fn unread(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }

    /// Uses up `bytes` of what is unread.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.from += bytes;
    }

    /// Uses up what is unread as far as it fits in `into`: how much.
    pub(super) fn copy(&mut self, into: &mut [u8]) -> usize {
        let bytes = into.len().min(self.unread().len());
        into[..bytes].copy_from_slice(&self.unread()[..bytes]);
        self.advance(bytes);
        bytes
    }

    /// Room behind what is unread, for `needed` bytes with it and for what may come at once.
    pub(super) fn room(&mut self, needed: usize) -> &mut [u8] {
        if self.from > 0 {
            self.bytes.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        let end = needed.max(FIRST_BYTES).min(self.bytes.len());
        &mut self.bytes[self.to..end]
    }

    /// Room for what follows a payload. It is read behind all of that: nothing is unread.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        debug_assert!(self.unread().is_empty(), "it would be read before what is older");
        (self.from, self.to) = (0, 0);
        &mut self.bytes[..SPARE_BYTES]
    }

    /// So much of the room that was given out last has been read into.
    pub(super) fn filled(&mut self, bytes: usize) {
        self.to += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes into the room for `needed` bytes, and says how large it was.
    fn fill(input: &mut Input, needed: usize, bytes: &[u8]) -> usize {
        let room = input.room(needed);
        let size = room.len();
        room[..bytes.len()].copy_from_slice(bytes);
        input.filled(bytes.len());
        size
    }

    #[test]
    fn what_is_read_is_used_up_in_order_and_makes_room() {
        let mut input = Input::new();
        assert_eq!(fill(&mut input, 1, b"abcdef"), FIRST_BYTES);
        input.advance(2);
        let mut into = [0; 3];
        assert_eq!((input.copy(&mut into), &into), (3, b"cde"));
        assert_eq!(fill(&mut input, INPUT_BYTES, b"gh"), INPUT_BYTES - 1);
        assert_eq!(input.unread(), b"fgh");
        let mut into = [0; 9];
        assert_eq!((input.copy(&mut into), &into[..3]), (3, &b"fgh"[..]));
        assert!(input.unread().is_empty());
    }

    #[test]
    fn what_follows_a_payload_is_all_that_is_unread_then() {
        let mut input = Input::new();
        fill(&mut input, 1, b"abc");
        input.advance(3);
        let spare = input.spare();
        assert_eq!(spare.len(), SPARE_BYTES);
        spare[..2].copy_from_slice(b"de");
        input.filled(2);
        assert_eq!(input.unread(), b"de");
    }
}
