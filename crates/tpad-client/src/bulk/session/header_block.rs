//! Header blocks: the frames that one comes in, and the fields that it holds.

use loona_hpack::Decoder;

use super::super::frame::{self, FrameHead};
use super::super::header::{self, Fields, HEADER_BLOCK_BYTES, HeaderFault};
use super::{Fault, fault};

/// A block that came whole.
pub(super) struct HeaderBlock {
    pub(super) fields: Fields,
    /// Whether it is its stream's end.
    pub(super) end: bool,
}

/// A connection's header blocks, of which one comes at a time.
pub(super) struct HeaderBlocks {
    /// A block that is continued: is it a stream's end, and its bytes.
    open: Option<(bool, Vec<u8>)>,
    decoder: Decoder<'static>,
}

impl HeaderBlocks {
    pub(super) fn new() -> Self {
        let mut decoder = Decoder::new();
        // HPACK's default, which we do not change.
        decoder.set_max_allowed_table_size(4096);
        Self { open: None, decoder }
    }

    /// Whether CONTINUATION has to follow.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Takes HEADERS; the block, unless it is continued.
    pub(super) fn begin(
        &mut self,
        head: FrameHead,
        payload: &[u8],
    ) -> Result<Option<HeaderBlock>, Fault> {
        let mut block = payload;
        let mut padding = 0;
        if head.has(frame::PADDED) {
            let Some((length, rest)) = block.split_first() else {
                return fault(frame::FRAME_SIZE_ERROR, "HEADERS is too short");
            };
            (padding, block) = (usize::from(*length), rest);
        }
        if head.has(frame::WITH_PRIORITY) {
            let Some(rest) = block.get(5..) else {
                return fault(frame::FRAME_SIZE_ERROR, "HEADERS is too short");
            };
            block = rest;
        }
        let Some(block) = block.len().checked_sub(padding).and_then(|end| block.get(..end)) else {
            return fault(frame::PROTOCOL_ERROR, "HEADERS has more padding than bytes");
        };
        let end = head.has(frame::END_STREAM);
        self.take(end, block.to_vec(), head.has(frame::END_HEADERS))
    }

    /// Takes CONTINUATION; the block, unless it is continued further.
    pub(super) fn go_on(
        &mut self,
        head: FrameHead,
        payload: &[u8],
    ) -> Result<Option<HeaderBlock>, Fault> {
        let Some((end, mut block)) = self.open.take() else {
            return fault(frame::PROTOCOL_ERROR, "nothing is to be continued");
        };
        block.extend_from_slice(payload);
        self.take(end, block, head.has(frame::END_HEADERS))
    }

    fn take(
        &mut self,
        end: bool,
        block: Vec<u8>,
        whole: bool,
    ) -> Result<Option<HeaderBlock>, Fault> {
        if block.len() > HEADER_BLOCK_BYTES {
            return fault(frame::ENHANCE_YOUR_CALM, "a header block is longer than allowed");
        }
        if !whole {
            self.open = Some((end, block));
            return Ok(None);
        }
        match header::decode(&mut self.decoder, &block) {
            Ok(fields) => Ok(Some(HeaderBlock { fields, end })),
            Err(HeaderFault::Compression(what)) => fault(frame::COMPRESSION_ERROR, what),
            Err(HeaderFault::Malformed(what)) => {
                fault(frame::PROTOCOL_ERROR, format!("a reply is malformed: {what}"))
            }
        }
    }
}
