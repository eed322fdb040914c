//! A stream of blocks.

mod assembly;
mod header;
mod image;
mod verify;

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use tonic::Status;
use tpad_proto::v1::BlockPart;

pub(crate) use self::assembly::Assembly;
pub(crate) use self::header::listed_block;
use crate::call::Call;
use crate::request::Asked;
use crate::{Error, FetchedBlock};

/// Images that are verified while the next one arrives.
const VERIFYING: usize = 2;

/// What a fetch resolved to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStart {
    /// The model.
    pub model: String,
    /// The manifest's number.
    pub revision: u64,
    /// The daemon's count of swaps: streams of one generation read one catalog.
    pub generation: u64,
    /// Blocks to come.
    pub blocks: u64,
    /// The sum of their images.
    pub bytes: u64,
}

/// Blocks in the order in which the daemon sends them: whichever is ready
/// first.
///
/// The stream ends after all blocks, or with the first error. Blocks before an
/// error are good; a block that fails on the daemon's side is left out, the
/// others come, and the error is last. Dropping the stream cancels the call:
/// the daemon stops sending, and at most two images are still being hashed.
pub struct BlockStream {
    start: StreamStart,
    blocks: Option<BoxStream<'static, Result<FetchedBlock, Error>>>,
}

impl BlockStream {
    /// What the fetch resolved to.
    #[must_use]
    pub fn start(&self) -> &StreamStart {
        &self.start
    }

    /// The next block; `None` when all have come. Nothing is lost when the
    /// returned future is dropped.
    pub async fn next(&mut self) -> Option<Result<FetchedBlock, Error>> {
        stream::StreamExt::next(self).await
    }

    /// Reads the stream's start and wraps the rest.
    pub(crate) async fn open(
        parts: BoxStream<'static, Result<Option<BlockPart>, Status>>,
        model: &str,
        asked: Asked,
        limits: BlockLimits,
        call: Call,
    ) -> Result<Self, Error> {
        let mut reader = Reader { parts, call, assembly: None };
        let Some(first) = reader.part().await? else {
            return Err(Error::protocol("fetch", "the stream ended before its start"));
        };
        let assembly = Assembly::open(first, model, asked, limits.max_block_bytes)?;
        let start = assembly.start().clone();
        reader.assembly = Some(assembly);
        let assembled = stream::try_unfold(reader, |mut reader| async move {
            Ok(reader.block().await?.map(|block| (block, reader)))
        });
        let blocks = assembled
            .map(move |block| async move { verify::checked(block?, limits.verify).await })
            .buffered(VERIFYING);
        Ok(Self { start, blocks: Some(blocks.boxed()) })
    }
}

impl Stream for BlockStream {
    type Item = Result<FetchedBlock, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(blocks) = &mut self.blocks else { return Poll::Ready(None) };
        let item = std::task::ready!(blocks.poll_next_unpin(context));
        if !matches!(item, Some(Ok(_))) {
            self.blocks = None;
        }
        Poll::Ready(item)
    }
}

impl std::fmt::Debug for BlockStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockStream").field("start", &self.start).finish_non_exhaustive()
    }
}

/// What a stream of blocks may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockLimits {
    pub(crate) max_block_bytes: u64,
    pub(crate) verify: bool,
}

struct Reader {
    parts: BoxStream<'static, Result<Option<BlockPart>, Status>>,
    call: Call,
    assembly: Option<Assembly>,
}

impl Reader {
    async fn part(&mut self) -> Result<Option<BlockPart>, Error> {
        match self.call.wait(self.parts.next()).await? {
            None => Ok(None),
            Some(Err(status)) => Err(self.call.error(&status)),
            Some(Ok(Some(part))) => Ok(Some(part)),
            Some(Ok(None)) => Err(Error::protocol("fetch", "a message without content")),
        }
    }

    async fn block(&mut self) -> Result<Option<FetchedBlock>, Error> {
        loop {
            let part = self.part().await?;
            let Some(assembly) = &mut self.assembly else { return Ok(None) };
            match part {
                None => {
                    assembly.finish()?;
                    return Ok(None);
                }
                Some(part) => {
                    if let Some(block) = assembly.accept(part)? {
                        return Ok(Some(block));
                    }
                }
            }
        }
    }
}
