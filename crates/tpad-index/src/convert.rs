//! Between the index's words and its messages.

use bytes::Bytes;
use tpad_manifest::{
    BlockId, BlockTemplate, Digest, Dtype, GateUp, GroupRun, IndexHeader, LooseBlock, LooseRange,
    LooseTensor, ObjectRecord, Orientation, Part, Projection, Role, Segment, SegmentEntry,
    TensorTemplate,
};

use crate::wire;

/// Characters of an unknown dtype that an error shows.
const SHOWN_DTYPE: usize = 32;

/// Pairs of a value and its number on the wire; both directions read one table.
const PROJECTIONS: &[(Projection, u32)] = &[
    (Projection::Gate, 1),
    (Projection::Up, 2),
    (Projection::Down, 3),
    (Projection::GateUp, 4),
    (Projection::Router, 5),
    (Projection::Other, 6),
    (Projection::TierHead, 7),
    (Projection::GroupHeads, 8),
];
const PARTS: &[(Part, u32)] = &[
    (Part::Weight, 1),
    (Part::Bias, 2),
    (Part::Scale, 3),
    (Part::GlobalScale, 4),
    (Part::InputScale, 5),
    (Part::ZeroPoint, 6),
    (Part::GroupIndex, 7),
    (Part::Shape, 8),
    (Part::CorrectionBias, 9),
];
const ORIENTATIONS: &[(Orientation, u32)] =
    &[(Orientation::Unknown, 0), (Orientation::OutIn, 1), (Orientation::InOut, 2)];
const GATE_UPS: &[(GateUp, u32)] =
    &[(GateUp::Unknown, 0), (GateUp::Concatenated, 1), (GateUp::Interleaved, 2)];

/// Why a message is not an index's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Misread {
    /// Where in the part.
    pub(crate) place: Option<String>,
    /// What does not read.
    pub(crate) detail: String,
    /// A newer version may have written it; otherwise no version does.
    pub(crate) newer: bool,
}

impl Misread {
    fn newer(detail: String) -> Self {
        Self { place: None, detail, newer: true }
    }

    fn at(self, place: String) -> Self {
        Self { place: Some(place), ..self }
    }
}

impl From<String> for Misread {
    fn from(detail: String) -> Self {
        Self { place: None, detail, newer: false }
    }
}

fn number<T: PartialEq>(table: &[(T, u32)], value: &T) -> u32 {
    table.iter().find(|(known, _)| known == value).map_or(0, |(_, number)| *number)
}

fn value<T: Copy>(table: &[(T, u32)], number: u32, what: &str) -> Result<T, Misread> {
    match table.iter().find(|(_, known)| *known == number) {
        Some((value, _)) => Ok(*value),
        // Nothing was written, which every version does.
        None if number == 0 => Err(format!("{what} 0 is unknown").into()),
        None => Err(Misread::newer(format!("{what} {number} is unknown"))),
    }
}

pub(crate) fn header(header: &IndexHeader) -> wire::IndexHeader {
    wire::IndexHeader {
        tier: header.tier.as_deref().unwrap_or_default().to_owned(),
        objects: header
            .objects
            .iter()
            .map(|object| wire::IndexObject { path: object.path.to_string(), bytes: object.bytes })
            .collect(),
        templates: header
            .templates
            .iter()
            .map(|block| wire::BlockTemplate {
                tensors: block.tensors.iter().map(tensor).collect(),
            })
            .collect(),
        segments: header.segments.iter().map(entry).collect(),
    }
}

fn entry(entry: &SegmentEntry) -> wire::SegmentEntry {
    wire::SegmentEntry {
        layer: entry.layer,
        offset: entry.offset,
        bytes: entry.bytes,
        digest: digest(entry.digest.as_bytes()),
        blocks: entry.blocks,
        image_bytes: entry.image_bytes,
        parameters: entry.parameters,
    }
}

fn digest(bytes: &[u8; 32]) -> Bytes {
    Bytes::from(bytes.to_vec())
}

fn tensor(tensor: &TensorTemplate) -> wire::TensorTemplate {
    wire::TensorTemplate {
        name: tensor.name.to_string(),
        dtype: tensor.dtype.name().to_owned(),
        shape: tensor.shape.clone(),
        projection: number(PROJECTIONS, &tensor.role.projection),
        part: number(PARTS, &tensor.role.part),
        orientation: number(ORIENTATIONS, &tensor.orientation),
        gate_up: number(GATE_UPS, &tensor.gate_up),
        values_per_element: tensor.values_per_element,
        sliced: tensor.sliced,
    }
}

pub(crate) fn segment(segment: &Segment) -> wire::IndexSegment {
    wire::IndexSegment {
        layer: segment.layer,
        groups: segment
            .groups
            .iter()
            .map(|run| wire::GroupRun { experts: run.experts, template: run.template })
            .collect(),
        block_ids: segment.block_ids.clone(),
        source_experts: segment.source_experts.clone(),
        router_columns: segment.router_columns.clone(),
        objects: segment.objects.clone(),
        offsets: segment.offsets.clone(),
        loose: segment.loose.iter().map(loose).collect(),
    }
}

fn loose(block: &LooseBlock) -> wire::LooseBlock {
    let tensors = block.tensors.iter().map(|loose| wire::LooseTensor {
        tensor: Some(tensor(&loose.tensor)),
        ranges: loose
            .ranges
            .iter()
            .map(|range| wire::ByteRange {
                object: range.object,
                offset: range.offset,
                bytes: range.bytes,
            })
            .collect(),
    });
    wire::LooseBlock { block_id: digest(block.id.as_bytes()), tensors: tensors.collect() }
}

fn bytes32(bytes: &[u8], what: &str) -> Result<[u8; 32], String> {
    bytes.try_into().map_err(|_| format!("{what} has {} bytes, 32 are expected", bytes.len()))
}

pub(crate) fn read_header(header: wire::IndexHeader) -> Result<IndexHeader, Misread> {
    let wire::IndexHeader { tier, objects, templates, segments } = header;
    let objects = objects
        .into_iter()
        .map(|object| ObjectRecord { path: object.path.into(), bytes: object.bytes })
        .collect();
    let templates: Result<Vec<BlockTemplate>, Misread> = templates
        .into_iter()
        .enumerate()
        .map(|(n, block)| {
            let tensors: Result<_, Misread> = block.tensors.into_iter().map(read_tensor).collect();
            let tensors = tensors.map_err(|misread| misread.at(format!("template {n}")))?;
            Ok(BlockTemplate { tensors })
        })
        .collect();
    let segments: Result<Vec<SegmentEntry>, String> =
        segments.into_iter().map(read_entry).collect();
    Ok(IndexHeader {
        tier: (!tier.is_empty()).then(|| tier.into()),
        objects,
        templates: templates?,
        segments: segments?,
    })
}

fn read_entry(entry: wire::SegmentEntry) -> Result<SegmentEntry, String> {
    let wire::SegmentEntry { layer, offset, bytes, digest, blocks, image_bytes, parameters } =
        entry;
    let digest = Digest::from_bytes(bytes32(&digest, "a segment's digest")?);
    Ok(SegmentEntry { layer, offset, bytes, digest, blocks, image_bytes, parameters })
}

fn read_tensor(tensor: wire::TensorTemplate) -> Result<TensorTemplate, Misread> {
    if tensor.values_per_element == 0 {
        return Err(format!("tensor {} holds 0 values per element", tensor.name).into());
    }
    let dtype = Dtype::from(&*tensor.dtype);
    if let Dtype::Unknown(name) = &dtype {
        let name: String = name.chars().take(SHOWN_DTYPE).collect();
        let detail = format!("dtype {name} has no known size");
        return Err(if name.is_empty() { detail.into() } else { Misread::newer(detail) });
    }
    Ok(TensorTemplate {
        dtype,
        role: Role {
            projection: value(PROJECTIONS, tensor.projection, "projection")?,
            part: value(PARTS, tensor.part, "part")?,
        },
        orientation: value(ORIENTATIONS, tensor.orientation, "orientation")?,
        gate_up: value(GATE_UPS, tensor.gate_up, "gate_up")?,
        values_per_element: tensor.values_per_element,
        sliced: tensor.sliced,
        shape: tensor.shape,
        name: tensor.name.into(),
    })
}

pub(crate) fn read_segment(segment: wire::IndexSegment) -> Result<Segment, Misread> {
    let groups = segment.groups.iter();
    let read =
        |(n, block)| read_loose(block).map_err(|misread| misread.at(format!("loose block {n}")));
    let loose: Result<Vec<LooseBlock>, Misread> =
        segment.loose.into_iter().enumerate().map(read).collect();
    Ok(Segment {
        layer: segment.layer,
        groups: groups
            .map(|run| GroupRun { experts: run.experts, template: run.template })
            .collect(),
        block_ids: segment.block_ids,
        source_experts: segment.source_experts,
        router_columns: segment.router_columns,
        objects: segment.objects,
        offsets: segment.offsets,
        loose: loose?,
    })
}

fn read_loose(block: wire::LooseBlock) -> Result<LooseBlock, Misread> {
    let id = BlockId::from_bytes(bytes32(&block.block_id, "a block id")?);
    let tensors: Result<Vec<LooseTensor>, Misread> = block
        .tensors
        .into_iter()
        .map(|loose| {
            let tensor = loose.tensor.ok_or_else(|| "a tensor has ranges alone".to_owned())?;
            let ranges = loose.ranges.iter().map(|range| LooseRange {
                object: range.object,
                offset: range.offset,
                bytes: range.bytes,
            });
            Ok(LooseTensor { tensor: read_tensor(tensor)?, ranges: ranges.collect() })
        })
        .collect();
    Ok(LooseBlock { id, tensors: tensors? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> wire::TensorTemplate {
        wire::TensorTemplate {
            name: "w".into(),
            dtype: "BF16".into(),
            shape: vec![2, 2],
            projection: 1,
            part: 1,
            orientation: 0,
            gate_up: 0,
            values_per_element: 1,
            sliced: false,
        }
    }

    #[test]
    fn what_a_newer_version_may_write_is_told_apart_from_nonsense() {
        type Change = fn(&mut wire::TensorTemplate);
        let unknown: [(Change, &str); 5] = [
            (|t| t.projection = 77, "projection 77 is unknown"),
            (|t| t.part = 77, "part 77 is unknown"),
            (|t| t.orientation = 77, "orientation 77 is unknown"),
            (|t| t.gate_up = 77, "gate_up 77 is unknown"),
            (|t| t.dtype = "F3".into(), "dtype F3 has no known size"),
        ];
        let malformed: [(Change, &str); 4] = [
            (|t| t.dtype.clear(), "dtype  has no known size"),
            (|t| t.projection = 0, "projection 0 is unknown"),
            (|t| t.part = 0, "part 0 is unknown"),
            (|t| t.values_per_element = 0, "tensor w holds 0 values per element"),
        ];
        assert!(read_tensor(template()).is_ok());
        let read = |change: Change| {
            let mut tensor = template();
            change(&mut tensor);
            read_tensor(tensor).expect_err("it cannot be read")
        };
        for (change, words) in unknown {
            assert_eq!(read(change), Misread::newer(words.to_owned()));
        }
        for (change, words) in malformed {
            assert_eq!(read(change), Misread::from(words.to_owned()));
        }
    }
}
