//! A mapping's blocks on their way to an index: drafts, then images to digest,
//! then records.

use std::collections::BTreeMap;
use std::sync::Arc;

use tpad_index::{EncodedIndex, encode};
use tpad_manifest::{
    BlockId, BlockRecord, BuildError, IndexBuilder, LayerRecord, Scoring, SizeError, TierId,
};
use tpad_store::{BlockFetch, CacheClass, ObjectEntry};

use super::ImportError;
use crate::{DraftBlock, ExpertSize, LayerDraft, Mapping, TierDraft};

/// The id of a block whose bytes have not been read.
const UNREAD: BlockId = BlockId::from_bytes([0; 32]);

/// All blocks of a revision.
pub(super) struct Blocks {
    pub(super) tiers: Vec<Tier>,
    pub(super) layers: Vec<LayerRecord>,
    pub(super) scoring: Scoring,
    pub(super) default_tier_set: Vec<TierId>,
    pub(super) tier_sets: BTreeMap<String, Vec<TierId>>,
    dense: Vec<BlockRecord>,
}

/// A tier: what the plan says of it, and its blocks.
pub(crate) struct Tier {
    /// The draft; its layers were moved out.
    pub(crate) draft: TierDraft,
    pub(crate) layers: Vec<Layer>,
}

/// One tier's blocks at one layer.
pub(crate) struct Layer {
    pub(crate) layer: u32,
    pub(crate) size: ExpertSize,
    pub(crate) groups: Vec<Vec<BlockRecord>>,
    router: Option<BlockRecord>,
}

/// The indexes of a revision.
pub(super) struct Indexes {
    /// One for each tier, in order.
    pub(super) tiers: Vec<EncodedIndex>,
    /// The dense tensors'; `None` when there are none.
    pub(super) dense: Option<EncodedIndex>,
}

impl Blocks {
    pub(super) fn of(mapping: Mapping) -> Result<Self, ImportError> {
        let Mapping { tiers, dense, layers, scoring, default_tier_set, tier_sets } = mapping;
        let blocks = Self {
            tiers: tiers.into_iter().map(Tier::of).collect(),
            layers,
            scoring,
            default_tier_set,
            tier_sets,
            dense: dense.into_iter().map(record).collect(),
        };
        check_sizes(blocks.iter())?;
        Ok(blocks)
    }

    /// All blocks in an order that [`Self::set_ids`] shares.
    fn iter(&self) -> impl Iterator<Item = &BlockRecord> {
        self.tiers.iter().flat_map(Tier::iter).chain(&self.dense)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut BlockRecord> {
        self.tiers.iter_mut().flat_map(Tier::iter_mut).chain(&mut self.dense)
    }

    /// Logical parameters of each tier's experts.
    pub(super) fn parameters(&self) -> Result<Vec<u64>, ImportError> {
        self.tiers.iter().map(Tier::parameters).collect()
    }

    /// What to read for each block, in the blocks' order.
    pub(super) fn images(&self) -> Result<Vec<BlockFetch>, ImportError> {
        images(self.iter())
    }

    /// Gives the blocks their ids, in their order.
    pub(super) fn set_ids(&mut self, ids: impl Iterator<Item = BlockId>) {
        for (block, id) in self.iter_mut().zip(ids) {
            block.id = id;
        }
    }

    /// The indexes over the blocks.
    pub(super) fn indexes(
        &self,
        shards: &BTreeMap<Arc<str>, ObjectEntry>,
    ) -> Result<Indexes, ImportError> {
        let tiers: Result<_, _> = self.tiers.iter().map(|tier| tier.index(shards)).collect();
        let dense = match &*self.dense {
            [] => None,
            dense => {
                let mut builder = IndexBuilder::dense();
                builder.push_dense(dense)?;
                note_sizes(&mut builder, dense.iter(), shards)?;
                Some(encode(&builder.finish()))
            }
        };
        Ok(Indexes { tiers: tiers?, dense })
    }
}

/// What to read for each block.
pub(crate) fn images<'a>(
    blocks: impl Iterator<Item = &'a BlockRecord>,
) -> Result<Vec<BlockFetch>, ImportError> {
    let class = CacheClass::from("import");
    let image = |block: &BlockRecord| {
        let name = || block.tensors.first().map_or_else(|| "".into(), |t| t.name.clone());
        BlockFetch::of(block, class.clone())
            .map_err(|source| ImportError::Size { name: name(), source })
    };
    blocks.map(image).collect()
}

/// Refuses tensors that have no size.
pub(crate) fn check_sizes<'a>(
    blocks: impl Iterator<Item = &'a BlockRecord>,
) -> Result<(), ImportError> {
    for tensor in blocks.flat_map(|block| &block.tensors) {
        tensor
            .bytes()
            .and_then(|_| tensor.parameters())
            .map_err(|source| ImportError::Size { name: tensor.name.clone(), source })?;
    }
    Ok(())
}

/// Notes the sizes of the shards that blocks point into, and of no others: an
/// index must not change with a shard that it does not use.
fn note_sizes<'a>(
    builder: &mut IndexBuilder,
    blocks: impl Iterator<Item = &'a BlockRecord>,
    shards: &BTreeMap<Arc<str>, ObjectEntry>,
) -> Result<(), BuildError> {
    let ranges = blocks.flat_map(|block| &block.tensors).flat_map(|tensor| &tensor.ranges);
    let mut noted: Vec<&Arc<str>> = Vec::new();
    for object in ranges.map(|range| &range.object) {
        if noted.last() == Some(&object) || noted.contains(&object) {
            continue;
        }
        if let Some(entry) = shards.get(object) {
            builder.set_object_bytes(object, entry.bytes)?;
        }
        noted.push(object);
    }
    Ok(())
}

impl Tier {
    pub(crate) fn of(mut draft: TierDraft) -> Self {
        let layers = std::mem::take(&mut draft.layers).into_iter().map(Layer::of).collect();
        Self { draft, layers }
    }

    /// Experts by group, then the router, layer by layer.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &BlockRecord> {
        let layers = self.layers.iter();
        layers.flat_map(|layer| layer.groups.iter().flatten().chain(&layer.router))
    }

    /// The same in the same order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut BlockRecord> {
        let layers = self.layers.iter_mut();
        layers.flat_map(|layer| layer.groups.iter_mut().flatten().chain(&mut layer.router))
    }

    /// The index over the tier's blocks. Objects that are not among `shards` end
    /// with the last tensor in them.
    pub(crate) fn index(
        &self,
        shards: &BTreeMap<Arc<str>, ObjectEntry>,
    ) -> Result<EncodedIndex, BuildError> {
        let mut builder = IndexBuilder::for_tier(&self.draft.id);
        for layer in &self.layers {
            builder.push_layer(layer.layer, &layer.groups, layer.router.as_ref())?;
        }
        note_sizes(&mut builder, self.iter(), shards)?;
        Ok(encode(&builder.finish()))
    }

    pub(crate) fn parameters(&self) -> Result<u64, ImportError> {
        let experts = self.layers.iter().flat_map(|layer| layer.groups.iter().flatten());
        let mut sum = 0u64;
        for (expert, tensor) in
            experts.flat_map(|expert| expert.tensors.iter().map(move |t| (expert, t)))
        {
            let overflow = || ImportError::Size {
                name: tensor.name.clone(),
                source: SizeError::Overflow(tensor.shape.clone(), tensor.dtype.clone()),
            };
            debug_assert!(expert.source.is_some(), "an expert names its source");
            let parameters = tensor.parameters().map_err(|_| overflow())?;
            sum = sum.checked_add(parameters).ok_or_else(overflow)?;
        }
        Ok(sum)
    }
}

impl Layer {
    fn of(draft: LayerDraft) -> Self {
        let LayerDraft { layer, groups, size, router } = draft;
        let records = |group: Vec<DraftBlock>| group.into_iter().map(record).collect();
        Self {
            layer,
            size,
            groups: groups.into_iter().map(records).collect(),
            router: router.map(record),
        }
    }
}

fn record(draft: DraftBlock) -> BlockRecord {
    BlockRecord { id: UNREAD, tensors: draft.tensors, source: draft.source }
}
