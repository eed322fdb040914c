//! Every rule that the messages of a stream have to keep.

use std::collections::HashSet;

use tpad_manifest::BlockKey;
use tpad_proto::v1::{self, Block, BlockPart, block_part::Part};

use super::StreamStart;
use super::header::{Header, header};
use crate::Error;
use crate::fetch::Ordinals;
use crate::request::Asked;

/// A stream's state: what it announced and the block that is coming in.
#[derive(Debug)]
pub(crate) struct Assembly {
    start: StreamStart,
    asked: Asked,
    max_block_bytes: u64,
    open: Option<Open>,
    /// Blocks that were opened. A request resolves to distinct blocks, so one
    /// that comes twice hides one that does not come.
    opened: HashSet<BlockKey>,
    bytes: u64,
    /// Blocks that came whole, as long as the daemon numbers them all.
    received: Option<Ordinals>,
}

#[derive(Debug)]
struct Open {
    header: Header,
    bytes: u64,
    received: u64,
}

impl Assembly {
    /// Reads the stream's first message.
    pub(super) fn open(
        first: BlockPart,
        model: &str,
        asked: Asked,
        max_block_bytes: u64,
    ) -> Result<Self, Error> {
        let Some(Part::Start(start)) = first.part else {
            return Err(Error::protocol("fetch", "the stream does not begin with its start"));
        };
        if start.model != model {
            return Err(Error::protocol(
                "fetch",
                format!("model {:?} came instead of {model:?}", start.model),
            ));
        }
        Ok(Self {
            start: start.into(),
            asked,
            max_block_bytes,
            open: None,
            opened: HashSet::new(),
            bytes: 0,
            received: Some(Ordinals::default()),
        })
    }

    pub(super) fn start(&self) -> &StreamStart {
        &self.start
    }

    /// A message between blocks. The next block's bytes, if it opens one.
    pub(super) fn accept(&mut self, part: Option<BlockPart>) -> Result<Option<u64>, Error> {
        match part.and_then(|part| part.part) {
            Some(Part::Block(block)) => self.open_block(block).map(Some),
            Some(Part::Payload(_)) => Err(Error::protocol("fetch", "bytes came before a block")),
            Some(Part::Start(_)) => Err(Error::protocol("fetch", "a second start")),
            None => Err(Error::protocol("fetch", "a message without content")),
        }
    }

    /// A payload of `bytes` begins.
    pub(super) fn payload(&self, bytes: u64) -> Result<(), Error> {
        let Some(open) = &self.open else {
            return Err(Error::protocol("fetch", "bytes came before a block"));
        };
        let place = || open.header.key.to_string();
        if bytes == 0 {
            return Err(Error::protocol(place(), "an empty payload"));
        }
        match bytes.checked_sub(open.bytes - open.received) {
            None | Some(0) => Ok(()),
            Some(more) => {
                Err(Error::protocol(place(), format!("{more} bytes more than announced came")))
            }
        }
    }

    /// Bytes of the open block were received.
    pub(super) fn received(&mut self, bytes: usize) {
        if let Some(open) = &mut self.open {
            // Within what `payload` let through.
            open.received += bytes as u64;
        }
    }

    /// What is missing of the open block.
    pub(super) fn missing(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.bytes - open.received)
    }

    /// The open block, once nothing of it is missing.
    pub(super) fn close(&mut self) -> Option<Header> {
        let Open { header, .. } = self.open.take_if(|open| open.bytes == open.received)?;
        match (header.ordinal, &mut self.received) {
            (Some(ordinal), Some(received)) => {
                received.add(ordinal);
            }
            _ => self.received = None,
        }
        Some(header)
    }

    /// Checks that nothing is missing of a block when something else comes.
    pub(super) fn nothing_is_open(&self, what: &str) -> Result<(), Error> {
        let Some(open) = &self.open else { return Ok(()) };
        Err(Error::protocol(
            open.header.key.to_string(),
            format!("{what} after {} of {} bytes", open.received, open.bytes),
        ))
    }

    /// Checks, at the end of the stream, that all of it came.
    pub(super) fn finish(&self) -> Result<(), Error> {
        self.nothing_is_open("the stream ended")?;
        let blocks = self.opened.len() as u64;
        if (blocks, self.bytes) != (self.start.blocks, self.start.bytes) {
            return Err(Error::protocol(
                "fetch",
                format!(
                    "the stream ended after {blocks} blocks of {} bytes, {} blocks of {} bytes \
                     were announced",
                    self.bytes, self.start.blocks, self.start.bytes
                ),
            ));
        }
        Ok(())
    }

    /// How to go on with the stream, if the daemon can do that.
    pub(super) fn resume(&self) -> Option<v1::Resume> {
        let received = self.received.as_ref()?.rows();
        let partial = match &self.open {
            None => None,
            Some(open) => Some(v1::PartialBlock {
                ordinal: open.header.ordinal?,
                block_id: open.header.record.id.as_bytes().to_vec().into(),
                offset: open.received,
            }),
        };
        Some(v1::Resume { revision: self.start.revision, received, partial })
    }

    /// Whether a stream's first message goes on with this one.
    pub(super) fn is_resumed_by(&self, first: &BlockPart) -> bool {
        let Some(Part::Start(start)) = &first.part else { return false };
        start.resumed
            && start.model == self.start.model
            && (start.revision, start.blocks, start.bytes)
                == (self.start.revision, self.start.blocks, self.start.bytes)
    }

    /// Whether a block's description goes on with the open block.
    pub(super) fn is_continued_by(&self, part: &BlockPart) -> bool {
        match (&self.open, &part.part) {
            (Some(open), Some(Part::Block(block))) => {
                block.ordinal == open.header.ordinal
                    && *block.block_id == *open.header.record.id.as_bytes()
                    && (block.image_bytes, block.offset) == (open.bytes, open.received)
            }
            _ => false,
        }
    }

    fn open_block(&mut self, block: Block) -> Result<u64, Error> {
        self.nothing_is_open("the next block came")?;
        let claimed = block.image_bytes;
        let header = header(block)?;
        let place = || header.key.to_string();
        if claimed > self.max_block_bytes {
            return Err(Error::TooLarge {
                what: place(),
                claimed,
                limit: self.max_block_bytes,
                option: "max_block_bytes",
            });
        }
        if !self.asked.contains(&header.key) {
            return Err(Error::protocol(place(), "a block came that nobody asked for"));
        }
        if header.offset != 0 {
            return Err(Error::protocol(place(), "the block came without its beginning"));
        }
        self.bytes = self.bytes.saturating_add(claimed);
        let blocks = self.opened.len() as u64 + 1;
        if blocks > self.start.blocks || self.bytes > self.start.bytes {
            return Err(Error::protocol(
                place(),
                format!(
                    "more came than the {} blocks of {} bytes that were announced",
                    self.start.blocks, self.start.bytes
                ),
            ));
        }
        if !self.opened.insert(header.key.clone()) {
            return Err(Error::protocol(place(), "the block came twice"));
        }
        self.open = Some(Open { header, bytes: claimed, received: 0 });
        Ok(claimed)
    }
}

#[cfg(test)]
mod tests;
