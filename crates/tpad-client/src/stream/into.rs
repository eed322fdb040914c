//! Blocks into memory of the caller's.

use tpad_manifest::BlockId;

use super::{BlockReader, StreamStart};
use crate::{Error, PlacedBlock};

/// Images begin on this boundary, counted from the start of the memory: that of
/// tensors within an image.
const ALIGN: usize = 256;

/// Received before its digest is taken on: half a millisecond at 1 to 2 GB/s.
const HASHED_BYTES: usize = 1 << 20;

/// Blocks that were received into memory of the caller's.
#[derive(Clone, Debug)]
pub struct PlacedBlocks {
    /// What the fetch resolved to.
    pub start: StreamStart,
    /// Where each block is, in the order in which they came.
    pub blocks: Vec<PlacedBlock>,
}

/// Receives every block, one behind the other.
pub(crate) async fn fetch_into(
    mut reader: BlockReader,
    memory: &mut [u8],
    verify: bool,
) -> Result<PlacedBlocks, Error> {
    let start = reader.start().clone();
    let mut blocks = Vec::new();
    let mut end = 0usize;
    while let Some(bytes) = reader.next().await? {
        let from = end.next_multiple_of(ALIGN);
        let room = memory.len().saturating_sub(from) as u64;
        let Some(to) = usize::try_from(bytes).ok().filter(|_| bytes <= room) else {
            return Err(Error::NoRoom { needed: start.bytes, there: memory.len() as u64 });
        };
        let image = from..from + to;
        let mut hasher = verify.then(blake3::Hasher::new);
        let pieces = if verify { HASHED_BYTES } else { to.max(1) };
        for piece in memory[image.clone()].chunks_mut(pieces) {
            reader.receive(piece).await?;
            if let Some(hasher) = &mut hasher {
                hasher.update(piece);
            }
        }
        let inside = |image: &std::ops::Range<usize>, range: std::ops::Range<usize>| {
            let range = image.start + range.start..image.start + range.end;
            (range.end <= image.end).then_some(range)
        };
        end = image.end;
        let block = reader.close()?.with_image(image, inside)?;
        if let Some(found) = hasher.map(|hasher| BlockId::from(hasher.finalize()))
            && found != block.id
        {
            return Err(Error::CorruptBlock { key: block.key, expected: block.id, found });
        }
        blocks.push(block);
    }
    Ok(PlacedBlocks { start, blocks })
}
