//! Building an index: records in, columns out.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::template::{expand, patterns};
use super::{
    BlockTemplate, GroupRun, IndexHeader, LOOSE, LooseBlock, LooseRange, LooseTensor, ObjectRecord,
    Segment, SegmentEntry, TensorTemplate,
};
use crate::{BlockRecord, Digest, SizeError, Source, TensorRecord, TierId};

/// An index in memory: its header, whose entries still lack places and digests
/// until it is encoded, and its segments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Index {
    /// The header.
    pub header: IndexHeader,
    /// The segments, as the header lists them.
    pub segments: Vec<Segment>,
}

/// Collects records into an [`Index`].
#[derive(Debug, Default)]
pub struct IndexBuilder {
    index: Index,
    objects: HashMap<Arc<str>, u32>,
    templates: HashMap<BlockTemplate, u32>,
}

/// Why records do not form an index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A tensor has no size.
    #[error("tensor {name}: {source}")]
    Size {
        /// The tensor's name.
        name: Arc<str>,
        /// Why.
        source: SizeError,
    },
    /// An expert has no source.
    #[error("layer {layer}: group {group}, expert {expert} names no source expert")]
    NoSource {
        /// The layer.
        layer: u32,
        /// The group.
        group: usize,
        /// The expert.
        expert: usize,
    },
    /// Layers are not in ascending order.
    #[error("layer {0} was pushed after a later layer")]
    LayerOrder(u32),
    /// A count does not fit the format.
    #[error("{0} are more than an index can hold")]
    TooMany(&'static str),
}

impl IndexBuilder {
    /// An index of one tier's experts and routers.
    #[must_use]
    pub fn for_tier(tier: &TierId) -> Self {
        let mut builder = Self::default();
        builder.index.header.tier = Some(tier.to_string().into());
        builder
    }

    /// An index of dense tensors.
    #[must_use]
    pub fn dense() -> Self {
        Self::default()
    }

    /// Notes how large an object is. Without it, an object ends where the last
    /// range in it ends.
    ///
    /// # Errors
    /// [`BuildError::TooMany`] objects.
    pub fn set_object_bytes(&mut self, path: &Arc<str>, bytes: u64) -> Result<(), BuildError> {
        let object = self.object(path)?;
        self.grow_object(object, bytes);
        Ok(())
    }

    /// Adds one layer: its experts by group, and the tier's router there.
    ///
    /// # Errors
    /// The first record that cannot be held.
    pub fn push_layer(
        &mut self,
        layer: u32,
        groups: &[Vec<BlockRecord>],
        router: Option<&BlockRecord>,
    ) -> Result<(), BuildError> {
        if self.index.segments.last().is_some_and(|last| last.layer >= layer) {
            return Err(BuildError::LayerOrder(layer));
        }
        let mut columns = Columns::default();
        let mut segment = Segment { layer, ..Segment::default() };
        let mut totals = Totals::default();
        for (group, experts) in groups.iter().enumerate() {
            for (n, record) in experts.iter().enumerate() {
                let source =
                    record.source.ok_or(BuildError::NoSource { layer, group, expert: n })?;
                columns.block_ids.extend_from_slice(record.id.as_bytes());
                columns.source_experts.extend_from_slice(&source.expert.to_le_bytes());
                columns.router_columns.extend_from_slice(&source.column.to_le_bytes());
                totals.add(record, true)?;
            }
            let template = match common_template(layer, experts) {
                Some(template) => {
                    self.push_cells(experts, &mut columns)?;
                    self.template(template)?
                }
                None => {
                    for record in experts {
                        segment.loose.push(self.spell(record)?);
                    }
                    LOOSE
                }
            };
            let experts =
                u32::try_from(experts.len()).map_err(|_| BuildError::TooMany("experts"))?;
            segment.groups.push(GroupRun { experts, template });
        }
        if let Some(router) = router {
            totals.add(router, false)?;
            segment.loose.push(self.spell(router)?);
        }
        columns.fill(&mut segment);
        self.push(segment, &totals);
        Ok(())
    }

    /// Adds the dense blocks, one tensor each.
    ///
    /// # Errors
    /// The first record that cannot be held.
    pub fn push_dense(&mut self, blocks: &[BlockRecord]) -> Result<(), BuildError> {
        let mut segment = Segment::default();
        let mut totals = Totals::default();
        for block in blocks {
            totals.add(block, false)?;
            segment.loose.push(self.spell(block)?);
        }
        self.push(segment, &totals);
        Ok(())
    }

    /// The index.
    #[must_use]
    pub fn finish(self) -> Index {
        self.index
    }

    fn push(&mut self, segment: Segment, totals: &Totals) {
        self.index.header.segments.push(SegmentEntry {
            layer: segment.layer,
            offset: 0,
            bytes: 0,
            digest: Digest::from_bytes([0; 32]),
            blocks: segment.block_count(),
            image_bytes: totals.image_bytes,
            parameters: totals.parameters,
        });
        self.index.segments.push(segment);
    }

    fn object(&mut self, path: &Arc<str>) -> Result<u32, BuildError> {
        if let Some(object) = self.objects.get(path) {
            return Ok(*object);
        }
        let objects = &mut self.index.header.objects;
        let object = u32::try_from(objects.len()).map_err(|_| BuildError::TooMany("objects"))?;
        objects.push(ObjectRecord { path: path.clone(), bytes: 0 });
        self.objects.insert(path.clone(), object);
        Ok(object)
    }

    fn grow_object(&mut self, object: u32, bytes: u64) {
        let objects = &mut self.index.header.objects;
        if let Some(object) = usize::try_from(object).ok().and_then(|n| objects.get_mut(n)) {
            object.bytes = object.bytes.max(bytes);
        }
    }

    fn template(&mut self, template: BlockTemplate) -> Result<u32, BuildError> {
        if let Some(known) = self.templates.get(&template) {
            return Ok(*known);
        }
        let templates = &mut self.index.header.templates;
        let number =
            u32::try_from(templates.len()).map_err(|_| BuildError::TooMany("templates"))?;
        templates.push(template.clone());
        self.templates.insert(template, number);
        Ok(number)
    }

    fn push_cells(
        &mut self,
        experts: &[BlockRecord],
        columns: &mut Columns,
    ) -> Result<(), BuildError> {
        for range in experts.iter().flat_map(|e| &e.tensors).flat_map(|tensor| &tensor.ranges) {
            let object = self.object(&range.object)?;
            self.grow_object(object, range.offset.saturating_add(range.bytes));
            columns.objects.extend_from_slice(&object.to_le_bytes());
            columns.offsets.extend_from_slice(&range.offset.to_le_bytes());
        }
        Ok(())
    }

    fn spell(&mut self, record: &BlockRecord) -> Result<LooseBlock, BuildError> {
        let mut tensors = Vec::with_capacity(record.tensors.len());
        for tensor in &record.tensors {
            let mut ranges = Vec::with_capacity(tensor.ranges.len());
            for range in &tensor.ranges {
                let object = self.object(&range.object)?;
                self.grow_object(object, range.offset.saturating_add(range.bytes));
                ranges.push(LooseRange { object, offset: range.offset, bytes: range.bytes });
            }
            tensors.push(LooseTensor { tensor: TensorTemplate::of(tensor), ranges });
        }
        Ok(LooseBlock { id: record.id, tensors })
    }
}

#[derive(Default)]
struct Columns {
    block_ids: Vec<u8>,
    source_experts: Vec<u8>,
    router_columns: Vec<u8>,
    objects: Vec<u8>,
    offsets: Vec<u8>,
}

impl Columns {
    fn fill(self, segment: &mut Segment) {
        let Self { block_ids, source_experts, router_columns, objects, offsets } = self;
        segment.block_ids = Bytes::from(block_ids);
        segment.source_experts = Bytes::from(source_experts);
        segment.router_columns = Bytes::from(router_columns);
        segment.objects = Bytes::from(objects);
        segment.offsets = Bytes::from(offsets);
    }
}

#[derive(Default)]
struct Totals {
    image_bytes: u64,
    parameters: u64,
}

impl Totals {
    fn add(&mut self, record: &BlockRecord, expert: bool) -> Result<(), BuildError> {
        let name =
            || record.tensors.first().map_or_else(|| "".into(), |tensor| tensor.name.clone());
        let size = |source| BuildError::Size { name: name(), source };
        let many = || BuildError::TooMany("bytes or parameters");
        let image = record.layout().map_err(size)?.bytes;
        self.image_bytes = self.image_bytes.checked_add(image).ok_or_else(many)?;
        if expert {
            let parameters = record.parameters().map_err(size)?;
            self.parameters = self.parameters.checked_add(parameters).ok_or_else(many)?;
        }
        Ok(())
    }
}

/// The one template that spells every expert of the group exactly, if there is
/// one.
fn common_template(layer: u32, experts: &[BlockRecord]) -> Option<BlockTemplate> {
    let first = experts.first()?;
    let mut tensors = Vec::with_capacity(first.tensors.len());
    for (n, tensor) in first.tensors.iter().enumerate() {
        let column = || experts.iter().map(|expert| (expert.tensors.get(n), expert.source));
        let same = column().all(|(other, _)| other.is_some_and(|other| alike(tensor, other)));
        if !same {
            return None;
        }
        let pattern =
            patterns(&tensor.name, layer, first.source?.expert).into_iter().find(|p| {
                column().all(|(tensor, source): (Option<&TensorRecord>, Option<Source>)| {
                    let Some((tensor, source)) = tensor.zip(source) else { return false };
                    expand(p, layer, Some(source.expert)) == *tensor.name
                })
            })?;
        let mut template = TensorTemplate::of(tensor);
        template.name = pattern.into();
        tensors.push(template);
    }
    let equal = experts.iter().all(|expert| expert.tensors.len() == tensors.len());
    (equal && !tensors.is_empty()).then_some(BlockTemplate { tensors })
}

/// Whether two tensors differ in name and place alone, in one range each.
fn alike(a: &TensorRecord, b: &TensorRecord) -> bool {
    let plain = |tensor: &TensorRecord| {
        let [range] = &*tensor.ranges else { return false };
        tensor.bytes() == Ok(range.bytes)
    };
    let shape =
        |tensor: &TensorRecord| TensorTemplate { name: "".into(), ..TensorTemplate::of(tensor) };
    plain(a) && plain(b) && shape(a) == shape(b)
}
