//! The index: one record per block, packed in columns so that ten million fit
//! in a gigabyte, and spelled out one at a time when asked for.

mod build;
mod check;
mod template;

use std::sync::Arc;

use bytes::Bytes;

pub use build::{BuildError, Index, IndexBuilder};
pub use template::{BlockTemplate, TensorTemplate};

use crate::{BlockId, BlockRecord, ByteRange, Digest, Source, TensorRecord};

/// In [`GroupRun::template`]: the group's experts are spelled out.
pub const LOOSE: u32 = u32::MAX;

/// What all segments of one index have in common, and where they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IndexHeader {
    /// The tier's id as text; `None` for the dense index.
    pub tier: Option<Arc<str>>,
    /// The objects that tensors point into.
    pub objects: Vec<ObjectRecord>,
    /// What blocks of one shape have in common.
    pub templates: Vec<BlockTemplate>,
    /// The segments, in layer order.
    pub segments: Vec<SegmentEntry>,
}

/// An object that tensors point into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRecord {
    /// Its path, relative to the checkpoint's root.
    pub path: Arc<str>,
    /// Its size when it was indexed.
    pub bytes: u64,
}

/// Where a segment lies in the index object, and what it must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// The layer; 0 for the dense index's one segment.
    pub layer: u32,
    /// The segment's first byte in the object.
    pub offset: u64,
    /// The segment's size.
    pub bytes: u64,
    /// BLAKE3 of its bytes.
    pub digest: Digest,
    /// Its blocks, the router included.
    pub blocks: u64,
    /// The sum of their images.
    pub image_bytes: u64,
    /// Logical parameters of its experts.
    pub parameters: u64,
}

/// One group's experts at one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupRun {
    /// How many.
    pub experts: u32,
    /// Their template, or [`LOOSE`].
    pub template: u32,
}

/// One layer's blocks. Columns are little-endian, of fixed width, and hold the
/// experts in (group, expert) order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Segment {
    /// The layer.
    pub layer: u32,
    /// The groups, in order.
    pub groups: Vec<GroupRun>,
    /// 32 bytes for each expert.
    pub block_ids: Bytes,
    /// A u32 for each expert: its number in the source checkpoint.
    pub source_experts: Bytes,
    /// A u32 for each expert: its router column.
    pub router_columns: Bytes,
    /// A u32 for each tensor of each templated expert: its object.
    pub objects: Bytes,
    /// A u64 likewise: its first byte in the object.
    pub offsets: Bytes,
    /// Blocks that are spelled out: experts of loose groups in order, then the
    /// router if there is one; in the dense index, all blocks.
    pub loose: Vec<LooseBlock>,
}

/// A block that is spelled out.
#[derive(Clone, Debug, PartialEq)]
pub struct LooseBlock {
    /// The digest of its image.
    pub id: BlockId,
    /// Its tensors with their ranges.
    pub tensors: Vec<LooseTensor>,
}

/// A tensor of a [`LooseBlock`].
#[derive(Clone, Debug, PartialEq)]
pub struct LooseTensor {
    /// The tensor; its name is meant literally.
    pub tensor: TensorTemplate,
    /// Where its bytes lie, in order.
    pub ranges: Vec<LooseRange>,
}

/// A piece of an object, by the object's place in [`IndexHeader::objects`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LooseRange {
    /// The object.
    pub object: u32,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub bytes: u64,
}

impl IndexHeader {
    /// The segment of a layer.
    #[must_use]
    pub fn segment(&self, layer: u32) -> Option<&SegmentEntry> {
        let found = self.segments.binary_search_by_key(&layer, |entry| entry.layer).ok()?;
        self.segments.get(found)
    }

    /// Blocks of all segments.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.segments.iter().fold(0, |sum, entry| sum.saturating_add(entry.blocks))
    }

    /// The sum of all images.
    #[must_use]
    pub fn image_bytes(&self) -> u64 {
        self.segments.iter().fold(0, |sum, entry| sum.saturating_add(entry.image_bytes))
    }

    /// Logical parameters of all experts.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.segments.iter().fold(0, |sum, entry| sum.saturating_add(entry.parameters))
    }
}

impl Segment {
    /// Experts of all groups.
    #[must_use]
    pub fn experts(&self) -> u64 {
        self.groups.iter().map(|group| u64::from(group.experts)).sum()
    }

    /// Blocks, the router included.
    #[must_use]
    pub fn block_count(&self) -> u64 {
        let templated: u64 = self.templated().map(|group| u64::from(group.experts)).sum();
        templated.saturating_add(self.loose.len() as u64)
    }

    /// The expert's record; `None` when the layer has no such expert.
    #[must_use]
    pub fn expert(&self, header: &IndexHeader, group: u32, expert: u32) -> Option<BlockRecord> {
        let group = usize::try_from(group).ok()?;
        let run = self.groups.get(group).filter(|run| expert < run.experts)?;
        let before = &self.groups[..group];
        let ordinal = count(before.iter()) + usize::try_from(expert).ok()?;
        let source = self.source(ordinal)?;
        if run.template == LOOSE {
            let n = count(before.iter().filter(|run| run.template == LOOSE))
                + usize::try_from(expert).ok()?;
            return self.spelled(header, n, Some(source));
        }
        let template = template(header, run)?;
        let mut cell = usize::try_from(expert).ok()? * template.tensors.len();
        for run in before.iter().filter(|run| run.template != LOOSE) {
            cell += count([run].into_iter()) * self::template(header, run)?.tensors.len();
        }
        let mut tensors = Vec::with_capacity(template.tensors.len());
        for (n, tensor) in template.tensors.iter().enumerate() {
            let object = header.objects.get(usize::try_from(self.object(cell + n)?).ok()?)?;
            let range = ByteRange {
                object: object.path.clone(),
                offset: self.offset(cell + n)?,
                bytes: tensor.bytes().ok()?,
            };
            tensors.push(tensor.record(self.layer, Some(source.expert), vec![range]));
        }
        Some(BlockRecord { id: self.block_id(ordinal)?, tensors, source: Some(source) })
    }

    /// Every expert's block and where it came from, by group; `None` when the
    /// columns are shorter than the groups.
    #[must_use]
    pub fn experts_by_group(&self) -> Option<Vec<Vec<(BlockId, Source)>>> {
        let (mut ordinal, mut loose) = (0, self.loose.iter());
        let mut groups = Vec::with_capacity(self.groups.len());
        for run in &self.groups {
            let mut group = Vec::new();
            for _ in 0..run.experts {
                let spelled = (run.template == LOOSE).then(|| loose.next().map(|block| block.id));
                let id = spelled.unwrap_or_else(|| self.block_id(ordinal))?;
                group.push((id, self.source(ordinal)?));
                ordinal += 1;
            }
            groups.push(group);
        }
        Some(groups)
    }

    /// The router's record; `None` when the tier has none at this layer.
    #[must_use]
    pub fn router(&self, header: &IndexHeader) -> Option<BlockRecord> {
        let experts = count(self.groups.iter().filter(|run| run.template == LOOSE));
        self.spelled(header, experts, None)
    }

    /// The `n`th dense block.
    #[must_use]
    pub fn dense(&self, header: &IndexHeader, n: usize) -> Option<BlockRecord> {
        self.spelled(header, n, None)
    }

    /// The dense blocks' tensor names, in order.
    pub fn dense_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.loose
            .iter()
            .filter_map(|block| block.tensors.first())
            .map(|tensor| &tensor.tensor.name)
    }

    /// The digest of the `ordinal`th expert's image.
    #[must_use]
    pub fn block_id(&self, ordinal: usize) -> Option<BlockId> {
        column::<32>(&self.block_ids, ordinal).map(BlockId::from_bytes)
    }

    /// Where the `ordinal`th expert came from.
    #[must_use]
    pub fn source(&self, ordinal: usize) -> Option<Source> {
        Some(Source {
            expert: u32::from_le_bytes(column(&self.source_experts, ordinal)?),
            column: u32::from_le_bytes(column(&self.router_columns, ordinal)?),
        })
    }

    fn object(&self, cell: usize) -> Option<u32> {
        column(&self.objects, cell).map(u32::from_le_bytes)
    }

    fn offset(&self, cell: usize) -> Option<u64> {
        column(&self.offsets, cell).map(u64::from_le_bytes)
    }

    fn templated(&self) -> impl Iterator<Item = &GroupRun> {
        self.groups.iter().filter(|run| run.template != LOOSE)
    }

    fn spelled(
        &self,
        header: &IndexHeader,
        n: usize,
        source: Option<Source>,
    ) -> Option<BlockRecord> {
        let block = self.loose.get(n)?;
        let tensors: Option<Vec<TensorRecord>> =
            block.tensors.iter().map(|tensor| tensor.record(header)).collect();
        Some(BlockRecord { id: block.id, tensors: tensors?, source })
    }
}

impl LooseTensor {
    fn record(&self, header: &IndexHeader) -> Option<TensorRecord> {
        let ranges: Option<Vec<ByteRange>> = self
            .ranges
            .iter()
            .map(|range| {
                let object = header.objects.get(usize::try_from(range.object).ok()?)?;
                let LooseRange { offset, bytes, .. } = *range;
                Some(ByteRange { object: object.path.clone(), offset, bytes })
            })
            .collect();
        Some(self.tensor.literal(ranges?))
    }
}

fn template<'h>(header: &'h IndexHeader, run: &GroupRun) -> Option<&'h BlockTemplate> {
    header.templates.get(usize::try_from(run.template).ok()?)
}

fn count<'a>(groups: impl Iterator<Item = &'a GroupRun>) -> usize {
    groups.map(|run| usize::try_from(run.experts).unwrap_or(usize::MAX)).sum()
}

/// The `n`th cell of a column whose cells have `N` bytes.
fn column<const N: usize>(cells: &[u8], n: usize) -> Option<[u8; N]> {
    let start = n.checked_mul(N)?;
    cells.get(start..start.checked_add(N)?)?.try_into().ok()
}
