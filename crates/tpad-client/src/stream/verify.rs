//! Images against their ids.

use tpad_manifest::BlockId;

use crate::{Error, FetchedBlock};

/// Images up to this size are hashed on the thread that reads the stream: half
/// a millisecond at BLAKE3's 1 GB/s on one core.
const INLINE_BYTES: usize = 512 << 10;

/// The block, if its image is what its id says or nobody wants to know.
pub(super) async fn checked(block: FetchedBlock, verify: bool) -> Result<FetchedBlock, Error> {
    if !verify {
        return Ok(block);
    }
    let found = if block.image.len() <= INLINE_BYTES {
        BlockId::of(&block.image)
    } else {
        let image = block.image.clone();
        let hash = tokio::task::spawn_blocking(move || {
            BlockId::from(blake3::Hasher::new().update_rayon(&image).finalize())
        });
        hash.await.map_err(|error| {
            Error::protocol(block.key.to_string(), format!("hashing was cut off: {error}"))
        })?
    };
    if found == block.id {
        Ok(block)
    } else {
        Err(Error::CorruptBlock { key: block.key, expected: block.id, found })
    }
}
