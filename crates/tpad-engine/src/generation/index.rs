//! The indexes of a generation: headers held, segments read when first needed.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tpad_index::{IndexError, MAX_SEGMENT_BYTES, decode_segment};
use tpad_manifest::{
    BlockId, BlockKey, BlockRecord, Catalog, ExpertKey, GroupRecord, GroupRun, ImageLayout,
    IndexHeader, IndexRef, LOOSE, Segment, SegmentEntry, Source, TensorTemplate, TierId,
    TierRecord, index_path,
};
use tpad_store::{ObjectOrigin, Origin as _};

use super::Generation;
use crate::EngineError;
use crate::error::IndexProblem;
use crate::kept::segment_key;

/// An index whose header was read and verified.
#[derive(Debug)]
pub(crate) struct OpenIndex {
    /// What it is, for errors.
    name: String,
    path: Arc<str>,
    header: Arc<IndexHeader>,
    /// The image size of each template, where it has one.
    image_bytes: Arc<[Option<u64>]>,
}

/// An index of a generation: a tier's by its place in the manifest, or the
/// dense one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum IndexNumber {
    Tier(u32),
    Dense,
}

/// Which segment of which index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SegmentKey {
    index: IndexNumber,
    segment: usize,
}

/// A segment with what its columns need to be read.
#[derive(Clone, Debug)]
pub(super) struct SharedSegment(Arc<HeldSegment>);

#[derive(Debug)]
struct HeldSegment {
    segment: Segment,
    header: Arc<IndexHeader>,
    image_bytes: Arc<[Option<u64>]>,
    /// The dense index's blocks by name.
    dense: HashMap<Arc<str>, usize>,
}

/// The indexes of a catalog's tiers, by their places in the manifest.
pub(super) fn of_tiers(catalog: &Catalog) -> Vec<Option<OpenIndex>> {
    let tiers = catalog.manifest().tiers.iter();
    let open = tiers.map(|tier| {
        let (record, header) = catalog.tier(&tier.id.to_string()).ok()?;
        Some(OpenIndex::new(format!("index of tier {}", tier.id), record.index.as_ref()?, header))
    });
    open.collect()
}

/// The index of a catalog's dense tensors.
pub(super) fn of_dense(catalog: &Catalog) -> Option<OpenIndex> {
    let name = "index of the dense tensors".into();
    Some(OpenIndex::new(name, catalog.manifest().dense.as_ref()?, catalog.dense()?))
}

impl OpenIndex {
    fn new(name: String, reference: &IndexRef, header: &Arc<IndexHeader>) -> Self {
        let image_bytes = header.templates.iter().map(|template| {
            let sizes: Result<Vec<u64>, _> =
                template.tensors.iter().map(TensorTemplate::bytes).collect();
            Some(ImageLayout::of(sizes.ok()?).ok()?.bytes)
        });
        let path = index_path(&reference.digest).into();
        Self { name, path, header: Arc::clone(header), image_bytes: image_bytes.collect() }
    }

    pub(super) fn segments(&self) -> &[SegmentEntry] {
        &self.header.segments
    }

    pub(super) fn layers(&self) -> impl Iterator<Item = u32> {
        self.header.segments.iter().map(|entry| entry.layer)
    }

    fn place_of(&self, layer: u32) -> Option<usize> {
        self.header.segments.binary_search_by_key(&layer, |entry| entry.layer).ok()
    }

    /// The layers for an error: bounded, ranges folded.
    fn describe_layers(&self) -> String {
        describe_runs(self.layers())
    }
}

/// Ascending numbers as ranges: "0 to 3, 7, 9 to 12", at most eight of them.
pub(super) fn describe_runs(numbers: impl Iterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, end)) if end.checked_add(1) == Some(number) => *end = number,
            _ => runs.push((number, number)),
        }
    }
    let shown = runs.iter().take(8).map(|(start, end)| {
        if start == end { start.to_string() } else { format!("{start} to {end}") }
    });
    match (shown.collect::<Vec<_>>().join(", "), runs.len()) {
        (_, 0) => "none".into(),
        (text, n) if n > 8 => format!("{text} and more"),
        (text, _) => text,
    }
}

impl SharedSegment {
    /// The segment and the header that its columns need.
    pub(super) fn parts(&self) -> (&IndexHeader, &Segment) {
        (&self.0.header, &self.0.segment)
    }

    pub(super) fn groups(&self) -> &[GroupRun] {
        &self.0.segment.groups
    }

    /// Every expert's block and where it came from, by group.
    pub(super) fn experts_by_group(&self) -> Option<Vec<Vec<(BlockId, Source)>>> {
        self.0.segment.experts_by_group()
    }

    pub(super) fn expert(&self, group: u32, expert: u32) -> Option<BlockRecord> {
        self.0.segment.expert(&self.0.header, group, expert)
    }

    pub(super) fn router(&self) -> Option<BlockRecord> {
        self.0.segment.router(&self.0.header)
    }

    pub(super) fn dense(&self, name: &str) -> Option<BlockRecord> {
        self.0.segment.dense(&self.0.header, *self.0.dense.get(name)?)
    }

    pub(super) fn dense_record(&self, number: usize) -> Option<BlockRecord> {
        self.0.segment.dense(&self.0.header, number)
    }

    pub(super) fn dense_name(&self, number: usize) -> Option<&Arc<str>> {
        self.0.segment.loose.get(number)?.tensors.first().map(|tensor| &tensor.tensor.name)
    }

    pub(super) fn dense_number(&self, name: &str) -> Option<usize> {
        self.0.dense.get(name).copied()
    }

    pub(super) fn dense_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.segment.dense_names()
    }

    /// The size of one expert's image, without spelling out its record where
    /// the group has a template.
    pub(super) fn expert_image_bytes(&self, group: u32, expert: u32) -> Option<u64> {
        let run = self.groups().get(usize::try_from(group).ok()?)?;
        if run.template == LOOSE {
            return Some(self.expert(group, expert)?.layout().ok()?.bytes);
        }
        *self.0.image_bytes.get(usize::try_from(run.template).ok()?)?
    }
}

impl Generation {
    /// The tier that an id names, by its place in the manifest.
    pub(super) fn tier(&self, id: &TierId) -> Result<u32, EngineError> {
        // By text: a key from the wire has 7 where the manifest may have "7".
        let tier = self.catalog.tier(&id.to_string());
        let (tier, _) =
            tier.map_err(|source| EngineError::Tier { model: self.model.to_string(), source })?;
        let mut places = (0..).zip(&self.manifest().tiers);
        let place = places.find(|(_, record)| record.id == tier.id).map(|(place, _)| place);
        Ok(place.expect("the catalog's tiers are the manifest's"))
    }

    pub(super) fn index(&self, number: IndexNumber) -> Option<&OpenIndex> {
        match number {
            IndexNumber::Tier(tier) => self.tiers.get(usize::try_from(tier).ok()?)?.as_ref(),
            IndexNumber::Dense => self.dense.as_ref(),
        }
    }

    pub(super) fn tier_id(&self, tier: u32) -> &TierId {
        let place = usize::try_from(tier).unwrap_or(usize::MAX);
        &self.manifest().tiers.get(place).expect("places of tiers come from this manifest").id
    }

    pub(super) fn groups(&self, tier: u32) -> &[GroupRecord] {
        let place = usize::try_from(tier).unwrap_or(usize::MAX);
        self.manifest().tiers.get(place).map_or(&[][..], |tier| &tier.groups)
    }

    /// Experts of the tier at one layer.
    pub(super) fn experts_of(&self, tier: u32) -> u64 {
        self.groups(tier).iter().map(|group| u64::from(group.experts)).sum()
    }

    /// The key of an expert, its tier spelled as in the manifest.
    pub(super) fn expert_key(&self, tier: u32, group: u32, expert: u32, layer: u32) -> BlockKey {
        let key = ExpertKey { tier: self.tier_id(tier).clone(), group, expert };
        BlockKey::Expert { key, layer }
    }

    /// Refuses a group or expert that the tier's record does not have.
    pub(super) fn check_expert(
        &self,
        tier: u32,
        group: u32,
        expert: u32,
    ) -> Result<(), EngineError> {
        let groups = self.groups(tier);
        let Some(record) = usize::try_from(group).ok().and_then(|group| groups.get(group)) else {
            let tier = self.tier_id(tier).to_string();
            return Err(EngineError::UnknownGroup { tier, group, groups: groups.len() });
        };
        if expert >= record.experts {
            let tier = self.tier_id(tier).to_string();
            let experts = record.experts;
            return Err(EngineError::UnknownExpert { tier, group, expert, experts });
        }
        Ok(())
    }

    /// The layers at which the tier has blocks.
    pub(super) fn index_layers(&self, tier: u32) -> Vec<u32> {
        let index = self.index(IndexNumber::Tier(tier));
        index.map(|index| index.layers().collect()).unwrap_or_default()
    }

    pub(super) fn no_layer(&self, tier: u32, layer: u32) -> EngineError {
        let index = self.index(IndexNumber::Tier(tier));
        EngineError::UnknownLayer {
            tier: self.tier_id(tier).to_string(),
            layer,
            layers: index.map_or_else(|| "none".into(), OpenIndex::describe_layers),
        }
    }

    /// Refuses a layer at which the tier has nothing.
    pub(super) fn check_layer(&self, tier: u32, layer: u32) -> Result<(), EngineError> {
        let index = self.index(IndexNumber::Tier(tier));
        match index.and_then(|index| index.place_of(layer)) {
            Some(_) => Ok(()),
            None => Err(self.no_layer(tier, layer)),
        }
    }

    /// The segment of a tier's layer.
    pub(super) async fn layer(
        &self,
        tier: u32,
        layer: u32,
        deadline: Instant,
    ) -> Result<SharedSegment, EngineError> {
        let number = IndexNumber::Tier(tier);
        let place = self.index(number).and_then(|index| index.place_of(layer));
        let place = place.ok_or_else(|| self.no_layer(tier, layer))?;
        self.segment(number, place, deadline).await
    }

    /// The dense index's segment; `None` when there are no dense tensors.
    pub(super) async fn dense_segment(
        &self,
        deadline: Instant,
    ) -> Result<Option<SharedSegment>, EngineError> {
        match &self.dense {
            Some(index) if !index.segments().is_empty() => {
                self.segment(IndexNumber::Dense, 0, deadline).await.map(Some)
            }
            _ => Ok(None),
        }
    }

    /// A segment by its place in its index, which must have it.
    pub(super) async fn segment(
        &self,
        number: IndexNumber,
        segment: usize,
        deadline: Instant,
    ) -> Result<SharedSegment, EngineError> {
        let index = self.index(number).expect("callers name indexes of this generation");
        let entry = index.segments().get(segment).expect("callers name segments of the index");
        let place = format!("{}, layer {}", index.name, entry.layer);
        let what = || format!("{place} was read");
        let load = || {
            let (root, path) = (Arc::clone(&self.root), Arc::clone(&index.path));
            let (header, image_bytes) = (Arc::clone(&index.header), Arc::clone(&index.image_bytes));
            let (entry, place) = (*entry, place.clone());
            let checks = Arc::clone(&self.shared.checks);
            let kept = self.shared.kept.clone();
            let deadline = Instant::now() + self.shared.bounds.load_deadline;
            let tier = match number {
                IndexNumber::Tier(tier) => self.manifest().tiers.get(tier as usize).cloned(),
                IndexNumber::Dense => None,
            };
            async move {
                let held = async {
                    let check = async |bytes: Bytes| {
                        let checked = checks.acquire().await;
                        let (tier, header) = (tier.clone(), Arc::clone(&header));
                        let image_bytes = Arc::clone(&image_bytes);
                        let check = move || decode(bytes, &entry, tier, header, image_bytes);
                        // A check that panics leaves nothing to serve.
                        let held = tokio::task::spawn_blocking(check).await;
                        drop(checked);
                        held.unwrap_or(Err(IndexProblem::Interrupted))
                    };
                    let key = segment_key(&entry);
                    if let Some(bytes) = kept.get(&key).await
                        && let Ok(held) = check(bytes).await
                    {
                        return Ok(held);
                    }
                    let bytes =
                        index_range(&root, &path, entry.offset, entry.bytes, deadline).await?;
                    let held = check(bytes.clone()).await?;
                    kept.put(&key, bytes).await;
                    Ok(held)
                };
                match held.await {
                    Ok(held) => Ok((SharedSegment(Arc::new(held)), entry.bytes)),
                    Err(source) => Err(EngineError::Index { place, source: Arc::new(source) }),
                }
            }
        };
        let key = SegmentKey { index: number, segment };
        let read = self.segments.get(key, deadline, what, load).await;
        if let Err(error @ EngineError::Index { .. }) = &read {
            self.report.note(&self.model, &place, error);
        }
        read
    }
}

fn decode(
    bytes: Bytes,
    entry: &SegmentEntry,
    tier: Option<TierRecord>,
    header: Arc<IndexHeader>,
    image_bytes: Arc<[Option<u64>]>,
) -> Result<HeldSegment, IndexProblem> {
    let segment = decode_segment(bytes, entry, &header)?;
    let problems = tier.map(|tier| tier.check_segment(&header, &segment)).unwrap_or_default();
    if !problems.is_empty() {
        return Err(IndexError::Problems(problems).into());
    }
    let dense = match header.tier {
        Some(_) => HashMap::new(),
        None => segment.dense_names().cloned().zip(0..).collect(),
    };
    Ok(HeldSegment { segment, header, image_bytes, dense })
}

/// A piece of an index object.
pub(crate) async fn index_range(
    root: &ObjectOrigin,
    path: &str,
    offset: u64,
    bytes: u64,
    deadline: Instant,
) -> Result<Bytes, IndexProblem> {
    let what = || path.to_owned();
    let too_large = || IndexError::TooLarge { what: what(), bytes, most: MAX_SEGMENT_BYTES };
    let size = usize::try_from(bytes).ok().filter(|_| bytes <= MAX_SEGMENT_BYTES);
    let mut piece = vec![0; size.ok_or_else(too_large)?];
    root.read_range(path, offset, &mut piece, deadline).await?;
    Ok(piece.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_described_in_runs() {
        let describe = |numbers: &[u32]| describe_runs(numbers.iter().copied());
        assert_eq!(describe(&[]), "none");
        assert_eq!(describe(&[3]), "3");
        assert_eq!(describe(&[1, 2, 3, 7, 9, 10]), "1 to 3, 7, 9 to 10");
        let odd: Vec<u32> = (0..20).map(|n| n * 2 + 1).collect();
        assert_eq!(describe(&odd), "1, 3, 5, 7, 9, 11, 13, 15 and more");
    }
}
