//! What a checkpoint holds of the parent, against the parent: tensor by tensor,
//! and nothing may differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use tpad_manifest::{BlockId, BlockRecord, IndexHeader, Manifest, Problem, Segment, TensorRecord};
use tpad_store::{BlockFetch, CacheClass, ObjectOrigin, OriginError};

use super::GrowError;
use super::incoming::{Old, OldLayer};
use crate::digest::{Digester, Ended};
use crate::{DraftBlock, ImportError, Phase, Progress, Revision};

/// Differences that are told one by one.
const MAX_PROBLEMS: usize = 64;

/// What is compared at a time, of a tensor that is known to differ.
const PIECE_BYTES: u64 = 8 << 20;

/// One block of the checkpoint and its counterpart.
struct Pair {
    /// In words, for problems.
    place: String,
    found: BlockRecord,
    parent: BlockRecord,
}

/// Both sides.
pub(super) struct Sides<'a> {
    pub(super) from: &'a ObjectOrigin,
    pub(super) parent: &'a Revision,
    pub(super) manifest: &'a Manifest,
    pub(super) progress: &'a dyn Progress,
    pub(super) stop: &'a CancellationToken,
}

impl Sides<'_> {
    /// Every difference between `old` and the parent.
    pub(super) async fn differences(&self, old: Old) -> Result<Vec<Problem>, GrowError> {
        let mut problems = Vec::new();
        let mut pairs = self.dense(old.dense, &mut problems).await?;
        self.layers(&old.layers, &mut pairs, &mut problems).await?;
        let differing = self.digest(&pairs).await?;
        let objects = self.parent.objects()?;
        for pair in differing.iter().filter_map(|n| pairs.get(*n)) {
            if problems.len() >= MAX_PROBLEMS {
                problems.push(Problem::new("", "there are more differences than these"));
                break;
            }
            problems.push(self.name(pair, &objects).await?);
        }
        Ok(problems)
    }

    async fn dense(
        &self,
        dense: Vec<DraftBlock>,
        problems: &mut Vec<Problem>,
    ) -> Result<Vec<Pair>, GrowError> {
        let mut known: BTreeMap<Arc<str>, BlockRecord> = BTreeMap::new();
        if let (false, Some(index)) = (dense.is_empty(), &self.manifest.dense) {
            let header = Arc::new(self.parent.header(index).await?);
            for entry in &header.segments {
                let segment = self.parent.segment(index, &header, entry).await?;
                let names = segment.dense_names().cloned().enumerate();
                known
                    .extend(names.filter_map(|(n, name)| Some((name, segment.dense(&header, n)?))));
            }
        }
        let mut pairs = Vec::with_capacity(dense.len());
        for block in dense {
            let Some(name) = block.tensors.first().map(|tensor| tensor.name.clone()) else {
                continue;
            };
            let place = format!("dense tensor {name}");
            match known.remove(&name) {
                Some(parent) => pairs.push(Pair { place, found: record(block), parent }),
                None => note(
                    problems,
                    place,
                    "the parent has no such tensor, and a tier may not bring any",
                ),
            }
        }
        Ok(pairs)
    }

    async fn layers(
        &self,
        old: &[OldLayer],
        pairs: &mut Vec<Pair>,
        problems: &mut Vec<Problem>,
    ) -> Result<(), GrowError> {
        if old.is_empty() {
            return Ok(());
        }
        let mut tiers = Vec::new();
        for tier in &self.manifest.tiers {
            if let Some(index) = &tier.index {
                let header = Arc::new(self.parent.header(index).await?);
                tiers.push((tier.id.to_string(), *index, header));
            }
        }
        for layer in old {
            let number = layer.layer.layer;
            let mut left: BTreeSet<u32> = layer.experts.iter().copied().collect();
            for (tier, index, header) in &tiers {
                if layer.tier.as_ref().is_some_and(|named| named != tier) {
                    continue;
                }
                let Some(entry) = header.segment(number) else { continue };
                let segment = self.parent.segment(index, header, entry).await?;
                let known = Known { tier, header, segment: &segment };
                known.pair(layer, &mut left, pairs, problems);
            }
            if let Some(tier) =
                layer.tier.as_ref().filter(|named| !tiers.iter().any(|(id, ..)| id == *named))
            {
                note(problems, format!("tier {tier}"), "the parent has no such tier with blocks");
                continue;
            }
            if !left.is_empty() {
                let left: Vec<u32> = left.into_iter().collect();
                let what = format!(
                    "experts {} are neither the new tier's nor the parent's",
                    crate::plan::ranges(&left)
                );
                note(problems, format!("layer {number}"), what);
            }
        }
        Ok(())
    }

    /// The pairs whose images differ.
    async fn digest(&self, pairs: &[Pair]) -> Result<Vec<usize>, GrowError> {
        let class = CacheClass::from("import");
        let mut images = Vec::with_capacity(pairs.len());
        for pair in pairs {
            images.push(fetch(&pair.found, &class)?);
        }
        self.progress.begin(Phase::Verification, images.iter().map(|image| image.bytes).sum());
        let mut differing = Vec::new();
        let mut failure = None;
        let digester = Digester { origin: self.from, progress: self.progress, stop: self.stop };
        let ended = digester
            .run(&images, |digested| {
                for (n, result) in digested {
                    match result {
                        Ok(id) if id != pairs[n].parent.id => differing.push(n),
                        Ok(_) => {}
                        Err(error) => failure = Some(error),
                    }
                }
                if failure.is_some() {
                    std::ops::ControlFlow::Break(())
                } else {
                    std::ops::ControlFlow::Continue(())
                }
            })
            .await;
        if let Some(error) = failure {
            return Err(error.into());
        }
        if ended != Ended::All {
            return Err(GrowError::Cancelled);
        }
        differing.sort_unstable();
        Ok(differing)
    }

    /// Which tensor of a pair differs.
    async fn name(&self, pair: &Pair, objects: &ObjectOrigin) -> Result<Problem, GrowError> {
        let shapes = |record: &BlockRecord| -> Vec<(String, String, Vec<u64>)> {
            let shape =
                |t: &TensorRecord| (t.name.to_string(), t.dtype.to_string(), t.shape.clone());
            record.tensors.iter().map(shape).collect()
        };
        let (found, parent) = (shapes(&pair.found), shapes(&pair.parent));
        if let Some((found, parent)) = found.iter().zip(&parent).find(|(a, b)| a != b) {
            let (name, dtype, shape) = found;
            let what = format!(
                "tensor {name}{} is {dtype} {shape:?}, the parent has {} {} {:?}",
                pair.found.tensors.first().map(file).unwrap_or_default(),
                parent.0,
                parent.1,
                parent.2
            );
            return Ok(Problem::new(pair.place.clone(), what));
        }
        if found.len() != parent.len() {
            let what = format!("{} tensors, the parent has {}", found.len(), parent.len());
            return Ok(Problem::new(pair.place.clone(), what));
        }
        for (found, parent) in pair.found.tensors.iter().zip(&pair.parent.tensors) {
            let ours = bytes(self.from, found).await?;
            let theirs = bytes(objects, parent).await?;
            if ours != theirs {
                let what = format!("the bytes of tensor {}{} differ", found.name, file(found));
                return Ok(Problem::new(pair.place.clone(), what));
            }
        }
        // The parent's bytes are not what its index says, or something changed
        // while it was read: either way they are not known to be equal.
        let what = format!("its bytes are not those of block {}", pair.parent.id);
        Ok(Problem::new(pair.place.clone(), what))
    }
}

/// One of the parent's tiers at one layer.
struct Known<'a> {
    tier: &'a str,
    header: &'a IndexHeader,
    segment: &'a Segment,
}

impl Known<'_> {
    /// Pairs what the checkpoint holds of this tier, all of it or nothing.
    fn pair(
        &self,
        old: &OldLayer,
        left: &mut BTreeSet<u32>,
        pairs: &mut Vec<Pair>,
        problems: &mut Vec<Problem>,
    ) {
        let layer = old.layer.layer;
        let mut numbers = Vec::new();
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for (group, run) in (0u32..).zip(&self.segment.groups) {
            for expert in 0..run.experts {
                let Some(parent) = self.segment.expert(self.header, group, expert) else {
                    continue;
                };
                let Some(source) = parent.source else { continue };
                numbers.push(source.expert);
                let ours = old.expert(source.expert).filter(|_| left.contains(&source.expert));
                let same_name = |block: &&DraftBlock| {
                    let name = |t: &[TensorRecord]| t.first().map(|t| t.name.clone());
                    name(&block.tensors) == name(&parent.tensors)
                };
                match ours.filter(same_name) {
                    Some(block) => {
                        let key = format!("{}/{group}/{expert}", self.tier);
                        let place = format!("expert {key}, layer {layer}");
                        found.push((
                            source.expert,
                            Pair { place, found: record(block.clone()), parent },
                        ));
                    }
                    None => missing.push(source.expert),
                }
            }
        }
        if found.is_empty() {
            return;
        }
        let place = format!("tier {}, layer {layer}", self.tier);
        if !missing.is_empty() {
            let what = format!(
                "the checkpoint has some of its experts and not {}: its router cannot be compared",
                crate::plan::ranges(&missing)
            );
            note(problems, place.clone(), what);
        }
        for (expert, pair) in found {
            left.remove(&expert);
            pairs.push(pair);
        }
        if let Some(parent) = self.segment.router(self.header).filter(|_| missing.is_empty()) {
            match old.router(&numbers) {
                Some(router) => {
                    let place = format!("router of {place}");
                    pairs.push(Pair { place, found: record(router), parent });
                }
                None => note(problems, place, "the router's rows cannot be told apart"),
            }
        }
    }
}

/// Which shard of the checkpoint holds a tensor.
fn file(tensor: &TensorRecord) -> String {
    tensor.ranges.first().map(|range| format!(" in {}", range.object)).unwrap_or_default()
}

fn note(problems: &mut Vec<Problem>, place: String, what: impl Into<String>) {
    if problems.len() < MAX_PROBLEMS {
        problems.push(Problem::new(place, what));
    }
}

fn record(draft: DraftBlock) -> BlockRecord {
    BlockRecord { id: BlockId::from_bytes([0; 32]), tensors: draft.tensors, source: draft.source }
}

fn fetch(record: &BlockRecord, class: &CacheClass) -> Result<BlockFetch, GrowError> {
    BlockFetch::of(record, class.clone()).map_err(|source| {
        let name = record.tensors.first().map_or_else(|| "".into(), |tensor| tensor.name.clone());
        ImportError::Size { name, source }.into()
    })
}

/// A digest of a tensor's bytes.
async fn bytes(origin: &ObjectOrigin, tensor: &TensorRecord) -> Result<blake3::Hash, OriginError> {
    let pieces = tensor.ranges.iter().flat_map(|range| {
        let starts = (0..range.bytes).step_by(usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX));
        starts.map(move |at| (&*range.object, range.offset + at, PIECE_BYTES.min(range.bytes - at)))
    });
    let reads =
        pieces.map(|(object, offset, bytes)| super::shards::piece(origin, object, offset, bytes));
    let hash = futures::stream::iter(reads).buffered(4);
    let hasher = hash
        .try_fold(blake3::Hasher::new(), async |mut hasher, piece| {
            hasher.update(&piece);
            Ok(hasher)
        })
        .await?;
    Ok(hasher.finalize())
}
