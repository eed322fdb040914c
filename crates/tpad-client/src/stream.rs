//! A stream of blocks.

mod assembly;
mod header;
mod image;
mod into;
mod reader;
mod verify;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use tpad_proto::v1;

pub(crate) use self::header::{listed_block, placed_block};
pub(crate) use self::image::Buffers;
pub use self::into::PlacedBlocks;
pub(crate) use self::into::fetch_into;
pub(crate) use self::reader::BlockReader;
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
/// others come, and the error is last. A connection that breaks is no error as
/// long as the daemon can be reached again and serves the same revision: the
/// stream goes on at the byte where it broke
/// ([`ClientOptions::resumes`](crate::ClientOptions::resumes)). Dropping the
/// stream cancels the call: the daemon stops sending, and at most two images
/// are still being hashed.
///
/// Bytes are received while the stream is polled. A daemon gives up a stream
/// that takes nothing for its `limits.progress_deadline`, 30 s by default, or
/// the connection, if it has sent all of it.
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

    pub(crate) fn of(reader: BlockReader, buffers: Arc<Buffers>, verify: bool) -> Self {
        let start = reader.start().clone();
        let blocks = stream::try_unfold((reader, buffers), |(mut reader, buffers)| async move {
            Ok(block(&mut reader, &buffers).await?.map(|block| (block, (reader, buffers))))
        });
        let blocks = blocks
            .map(move |block| async move { verify::checked(block?, verify).await })
            .buffered(VERIFYING);
        Self { start, blocks: Some(blocks.boxed()) }
    }
}

/// The next block in memory of its own.
async fn block(
    reader: &mut BlockReader,
    buffers: &Arc<Buffers>,
) -> Result<Option<FetchedBlock>, Error> {
    let Some(bytes) = reader.next().await? else { return Ok(None) };
    // Within `max_block_bytes`, which fits where it was set.
    let mut image = buffers.image(usize::try_from(bytes).unwrap_or(usize::MAX));
    while reader.missing() > 0 {
        reader.receive(image.unfilled()).await?;
        image.fill();
    }
    let header = reader.close()?;
    let block = header.with_image(image.into_bytes(), |image, range| {
        (range.end <= image.len()).then(|| image.slice(range))
    });
    block.map(Some)
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

impl From<v1::StreamStart> for StreamStart {
    fn from(start: v1::StreamStart) -> Self {
        let v1::StreamStart { model, revision, generation, blocks, bytes, resumed: _ } = start;
        Self { model, revision, generation, blocks, bytes }
    }
}

/// What a stream of blocks may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockLimits {
    pub(crate) max_block_bytes: u64,
    pub(crate) resumes: u32,
}
