//! Blocks from the messages of a stream, and every rule that the messages have
//! to keep.

use std::collections::HashSet;

use tpad_manifest::BlockKey;
use tpad_proto::v1::{Block, BlockPart, block_part::Part};

use super::StreamStart;
use super::header::{Header, header};
use super::image::{Excess, Image};
use crate::request::Asked;
use crate::{Error, FetchedBlock};

/// A stream's state: what it announced and the block that is coming in.
#[derive(Debug)]
pub(crate) struct Assembly {
    start: StreamStart,
    asked: Asked,
    max_block_bytes: u64,
    open: Option<(Header, Image)>,
    /// Blocks that were opened. A request resolves to distinct blocks, so one
    /// that comes twice hides one that does not come.
    opened: HashSet<BlockKey>,
    bytes: u64,
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
        let start = StreamStart {
            model: start.model,
            revision: start.revision,
            generation: start.generation,
            blocks: start.blocks,
            bytes: start.bytes,
        };
        Ok(Self { start, asked, max_block_bytes, open: None, opened: HashSet::new(), bytes: 0 })
    }

    pub(super) fn start(&self) -> &StreamStart {
        &self.start
    }

    /// Takes a message; answers with a block when it completes one.
    pub(super) fn accept(&mut self, part: BlockPart) -> Result<Option<FetchedBlock>, Error> {
        match part.part {
            Some(Part::Block(block)) => self.open_block(block)?,
            Some(Part::Payload(payload)) => {
                let Some((header, image)) = &mut self.open else {
                    return Err(Error::protocol("fetch", "bytes came before a block"));
                };
                let place = || header.key.to_string();
                if payload.is_empty() {
                    return Err(Error::protocol(place(), "an empty payload"));
                }
                image.push(payload).map_err(|Excess(bytes)| {
                    Error::protocol(place(), format!("{bytes} bytes more than announced came"))
                })?;
            }
            Some(Part::Start(_)) => return Err(Error::protocol("fetch", "a second start")),
            None => return Err(Error::protocol("fetch", "a message without content")),
        }
        match self.open.take() {
            Some((header, image)) if image.is_complete() => {
                Ok(Some(header.with_image(image.into_bytes())?))
            }
            open => {
                self.open = open;
                Ok(None)
            }
        }
    }

    /// Checks, at the end of the stream, that all of it came.
    pub(super) fn finish(&self) -> Result<(), Error> {
        if let Some((header, image)) = &self.open {
            return Err(Error::protocol(
                header.key.to_string(),
                format!(
                    "the stream ended after {} of {} bytes",
                    image.received(),
                    image.announced()
                ),
            ));
        }
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

    fn open_block(&mut self, block: Block) -> Result<(), Error> {
        if let Some((header, image)) = &self.open {
            return Err(Error::protocol(
                header.key.to_string(),
                format!(
                    "the next block came after {} of {} bytes",
                    image.received(),
                    image.announced()
                ),
            ));
        }
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
        self.open = Some((header, Image::of(claimed)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
