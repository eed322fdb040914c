//! A new tier's bytes on their way to the parent's root: safetensors shards with
//! the tier's tensors and nothing else.
//!
//! A shard is named by what it holds, so whoever runs again finds what is there,
//! and two who upload the same do not disturb each other.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{
    BlockId, BlockRecord, ByteRange, IMAGE_ALIGN_BYTES, SizeError, TensorRecord, TierId,
};
use tpad_store::{ErrorKind, ObjectOrigin, Origin as _, OriginError};

use super::GrowError;
use crate::blocking::blocking;
use crate::{ImportError, Phase, Progress};

/// Tensors that share a shard; a larger one has a shard of its own. It is what
/// an upload holds in memory.
const SHARD_BYTES: u64 = 256 << 20;

/// What one request asks the source for.
const READ_BYTES: u64 = 8 << 20;

/// Requests in flight.
const READS: usize = 8;

/// How long one request may take, its retries included.
const READ_DEADLINE: Duration = Duration::from_secs(300);

/// One shard: the tensors in it, by their places among the blocks.
struct Shard {
    path: Arc<str>,
    header: Vec<u8>,
    tensors: Vec<(usize, usize)>,
    bytes: u64,
}

/// Where shards go.
pub(super) struct Upload<'a> {
    pub(super) from: &'a ObjectOrigin,
    pub(super) to: &'a ObjectOrigin,
    /// Objects older than this are written again, so that nothing which cleans
    /// up by age takes them before the revision names them.
    pub(super) oldest_ms: i64,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a CancellationToken,
}

impl Upload<'_> {
    /// Writes the blocks' tensors and makes the blocks point to them. Returns
    /// how many bytes were there already.
    pub(super) async fn run(
        &self,
        tier: &TierId,
        blocks: &mut [&mut BlockRecord],
    ) -> Result<u64, GrowError> {
        let shards = plan(tier, blocks)?;
        self.progress.begin(Phase::Writing, shards.iter().map(|shard| shard.bytes).sum());
        let mut reused = 0;
        for shard in &shards {
            let write = self.write(shard, blocks);
            let written = self.stop.run_until_cancelled(write).await;
            if !written.unwrap_or(Err(GrowError::Cancelled))? {
                reused += shard.bytes;
            }
            self.progress.advance(shard.bytes);
        }
        point(&shards, blocks);
        Ok(reused)
    }

    /// Makes the blocks point to where [`Self::run`] would write them.
    pub(super) fn place(
        &self,
        tier: &TierId,
        blocks: &mut [&mut BlockRecord],
    ) -> Result<(), GrowError> {
        point(&plan(tier, blocks)?, blocks);
        Ok(())
    }

    /// Whether the shard had to be written.
    async fn write(&self, shard: &Shard, blocks: &[&mut BlockRecord]) -> Result<bool, GrowError> {
        match self.to.entry(&shard.path).await {
            Ok(there) if there.bytes == shard.bytes && there.modified_ms >= self.oldest_ms => {
                return Ok(false);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        let pieces = shard.tensors.iter().flat_map(|(block, tensor)| {
            blocks[*block].tensors[*tensor].ranges.iter().flat_map(|range| {
                let starts = (0..range.bytes).step_by(usize::try_from(READ_BYTES).unwrap_or(1));
                starts.map(|at| {
                    let bytes = READ_BYTES.min(range.bytes - at);
                    piece(self.from, &range.object, range.offset + at, bytes)
                })
            })
        });
        let mut object = BytesMut::with_capacity(usize::try_from(shard.bytes).unwrap_or(0));
        object.extend_from_slice(&shard.header);
        let mut reads = futures::stream::iter(pieces).buffered(READS);
        while let Some(piece) = reads.try_next().await? {
            object.extend_from_slice(&piece);
        }
        drop(reads);
        let object = object.freeze();
        self.check(shard, blocks, &object).await?;
        self.to.put(&shard.path, object).await?;
        Ok(true)
    }

    /// Refuses bytes that are no longer those that were digested: the shard's
    /// name says what is in it.
    async fn check(
        &self,
        shard: &Shard,
        blocks: &[&mut BlockRecord],
        object: &Bytes,
    ) -> Result<(), GrowError> {
        let mut at = shard.header.len();
        let mut images: Vec<(usize, BlockId, Vec<Bytes>)> = Vec::new();
        for (block, tensor) in &shard.tensors {
            let bytes = ranges(&blocks[*block].tensors[*tensor]);
            let end = at + usize::try_from(bytes).unwrap_or(usize::MAX);
            let tensor = object.slice(at..end);
            match images.last_mut() {
                Some((last, _, tensors)) if last == block => tensors.push(tensor),
                _ => images.push((*block, blocks[*block].id, vec![tensor])),
            }
            at = end;
        }
        let changed = blocking(move || {
            let differs =
                |(_, id, tensors): &&(usize, BlockId, Vec<Bytes>)| *id != image_id(tensors);
            images.iter().find(differs).map(|(block, ..)| *block)
        });
        match changed.await {
            None => Ok(()),
            Some(block) => {
                let tensors = blocks[block].tensors.iter();
                let object = tensors.flat_map(|tensor| &tensor.ranges).next();
                let object = object.map_or_else(String::new, |range| range.object.to_string());
                Err(ImportError::Changed { object }.into())
            }
        }
    }
}

/// The id of the image that these tensors make.
fn image_id(tensors: &[Bytes]) -> BlockId {
    const ZEROS: [u8; 256] = [0; 256];
    const { assert!(IMAGE_ALIGN_BYTES == 256, "tensors are padded to it") };
    let mut hasher = blake3::Hasher::new();
    for tensor in tensors {
        hasher.update(tensor);
        let padding = tensor.len().next_multiple_of(ZEROS.len()) - tensor.len();
        hasher.update(&ZEROS[..padding]);
    }
    BlockId::from_bytes(*hasher.finalize().as_bytes())
}

fn point(shards: &[Shard], blocks: &mut [&mut BlockRecord]) {
    for shard in shards {
        let mut offset = shard.header.len() as u64;
        for (block, tensor) in &shard.tensors {
            let tensor = &mut blocks[*block].tensors[*tensor];
            let bytes = ranges(tensor);
            tensor.ranges = vec![ByteRange { object: shard.path.clone(), offset, bytes }];
            offset += bytes;
        }
    }
}

/// A piece of an object.
pub(super) async fn piece(
    origin: &ObjectOrigin,
    object: &str,
    offset: u64,
    bytes: u64,
) -> Result<Bytes, OriginError> {
    let mut piece = BytesMut::zeroed(usize::try_from(bytes).unwrap_or(usize::MAX));
    origin.read_range(object, offset, &mut piece, Instant::now() + READ_DEADLINE).await?;
    Ok(piece.freeze())
}

fn plan(tier: &TierId, blocks: &[&mut BlockRecord]) -> Result<Vec<Shard>, GrowError> {
    let mut groups: Vec<(Vec<(usize, usize)>, u64)> = Vec::new();
    for (n, block) in blocks.iter().enumerate() {
        let bytes: u64 = block.tensors.iter().map(ranges).sum();
        let tensors = (0..block.tensors.len()).map(|tensor| (n, tensor));
        match groups.last_mut() {
            Some((group, total)) if *total + bytes <= SHARD_BYTES => {
                group.extend(tensors);
                *total += bytes;
            }
            _ => groups.push((tensors.collect(), bytes)),
        }
    }
    let mut shards = Vec::with_capacity(groups.len());
    for (tensors, bytes) in groups {
        let header = header(tier, &tensors, blocks).map_err(|(tensor, source)| {
            GrowError::Import(ImportError::Size { name: tensor.name.clone(), source })
        })?;
        let mut name = blake3::Hasher::new();
        name.update(&header);
        for (block, tensor) in &tensors {
            if *tensor == 0 {
                name.update(blocks[*block].id.as_bytes());
            }
        }
        let name = name.finalize().to_hex();
        let path = format!("tpad/shards/{}.safetensors", &name[..32]);
        let bytes = bytes + header.len() as u64;
        shards.push(Shard { path: path.into(), header, tensors, bytes });
    }
    Ok(shards)
}

/// The header with its length in front, padded to eight bytes. A slice of a
/// stacked tensor is named by its expert besides, since names are unique.
fn header<'b>(
    tier: &TierId,
    tensors: &[(usize, usize)],
    blocks: &'b [&mut BlockRecord],
) -> Result<Vec<u8>, (&'b TensorRecord, SizeError)> {
    let mut map = Map::new();
    let tier = tier.to_string();
    map.insert("__metadata__".to_owned(), json!({ "format": "pt", "tpad_tier": tier }));
    let mut end = 0u64;
    for (block, tensor) in tensors {
        let block = &blocks[*block];
        let tensor = &block.tensors[*tensor];
        let begin = end;
        end += tensor.bytes().map_err(|source| (tensor, source))?;
        let name = match block.source.filter(|_| tensor.sliced) {
            Some(source) => format!("{}.{}", tensor.name, source.expert),
            None => tensor.name.to_string(),
        };
        let entry = json!({
            "dtype": tensor.dtype.name(),
            "shape": tensor.shape,
            "data_offsets": [begin, end],
        });
        map.insert(name, entry);
    }
    let mut json = Value::Object(map).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

fn ranges(tensor: &TensorRecord) -> u64 {
    tensor.ranges.iter().map(|range| range.bytes).sum()
}
