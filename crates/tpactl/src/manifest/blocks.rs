//! The blocks of an index, one JSON document per line.

use std::sync::Arc;

use serde::Serialize;
use tpad_manifest::{
    BlockKey, BlockRecord, ExpertKey, GateUp, IndexHeader, Orientation, Part, Projection, Segment,
    TierRecord,
};
use tpad_publish::Revision;

use super::Show;
use crate::failure::{Exit, Failure};
use crate::fetch::KeyReport;
use crate::output::Output;

#[derive(Serialize)]
struct Block {
    key: KeyReport,
    block_id: String,
    image_bytes: u64,
    source_expert: Option<u32>,
    router_column: Option<u32>,
    tensors: Vec<Tensor>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    projection: &'static str,
    part: &'static str,
    orientation: Option<&'static str>,
    gate_up: Option<&'static str>,
    values_per_element: u32,
    sliced: bool,
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    object: String,
    offset: u64,
    bytes: u64,
}

/// Prints the blocks that `args` choose.
pub(super) async fn show(args: &Show, revision: &Revision, output: &Output) -> Result<(), Failure> {
    let loaded = revision
        .manifest()
        .as_ref()
        .map_err(|rejected| Failure::new(Exit::InvalidArgument, rejected))?;
    let manifest = &loaded.manifest;
    if let Some(layer) = args.layer
        && !manifest.layers.iter().any(|known| known.layer == layer)
    {
        let layers: Vec<String> = manifest.layers.iter().map(|l| l.layer.to_string()).collect();
        let message = format!("there is no layer {layer}; there are {}", layers.join(", "));
        return Err(Failure::new(Exit::NotFound, message));
    }
    if let Some(tier) = &args.tier
        && manifest.tier(tier).is_none()
    {
        let tiers: Vec<String> = manifest.tiers.iter().map(|t| t.id.to_string()).collect();
        let message = format!("there is no tier {tier:?}; there are {}", tiers.join(", "));
        return Err(Failure::new(Exit::NotFound, message));
    }
    let chosen = |tier: &&TierRecord| {
        !args.dense && args.tier.as_ref().is_none_or(|chosen| tier.id.is(chosen))
    };
    for tier in manifest.tiers.iter().filter(chosen) {
        let Some(index) = &tier.index else {
            output.note(format_args!("note: tier {} has no index", tier.id));
            continue;
        };
        if let Some(reason) = loaded.skipped.get(&tier.id) {
            output.note(format_args!("note: tier {} is skipped: {reason}", tier.id));
            continue;
        }
        let header = match revision.header(index).await {
            Ok(header) => Arc::new(header),
            Err(error) if error.is_newer() => {
                output.note(format_args!("note: tier {} is skipped: {error}", tier.id));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for entry in &header.segments {
            if args.layer.is_none_or(|layer| layer == entry.layer) {
                let segment = revision.segment(index, &header, entry).await?;
                show_tier(tier, &header, &segment, output)?;
            }
        }
    }
    if let Some(index) = &manifest.dense
        && (args.dense || (args.index && args.tier.is_none() && args.layer.is_none()))
    {
        let header = Arc::new(revision.header(index).await?);
        for entry in &header.segments {
            let segment = revision.segment(index, &header, entry).await?;
            for n in 0..segment.loose.len() {
                if let Some(record) = segment.dense(&header, n) {
                    let name = record.tensors.first().map(|tensor| tensor.name.clone());
                    let key = BlockKey::Dense { name: name.unwrap_or_default() };
                    output.json_line(&block(&key, &record)?)?;
                }
            }
        }
    }
    Ok(())
}

fn show_tier(
    tier: &TierRecord,
    header: &IndexHeader,
    segment: &Segment,
    output: &Output,
) -> Result<(), Failure> {
    let (id, layer) = (&tier.id, segment.layer);
    for (group, run) in (0u32..).zip(&segment.groups) {
        for expert in 0..run.experts {
            let key = ExpertKey { tier: id.clone(), group, expert };
            if let Some(record) = segment.expert(header, group, expert) {
                output.json_line(&block(&BlockKey::Expert { key, layer }, &record)?)?;
            }
        }
    }
    if let Some(record) = segment.router(header) {
        let key = BlockKey::Router { tier: id.clone(), layer };
        output.json_line(&block(&key, &record)?)?;
    }
    Ok(())
}

fn block(key: &BlockKey, record: &BlockRecord) -> Result<Block, Failure> {
    let layout = record
        .layout()
        .map_err(|error| Failure::new(Exit::DataLoss, error).about(&key.to_string()))?;
    let tensors = record.tensors.iter().map(|tensor| Tensor {
        name: tensor.name.to_string(),
        dtype: tensor.dtype.to_string(),
        shape: tensor.shape.clone(),
        projection: projection(tensor.role.projection),
        part: part(tensor.role.part),
        orientation: match tensor.orientation {
            Orientation::Unknown => None,
            Orientation::OutIn => Some("out_in"),
            Orientation::InOut => Some("in_out"),
        },
        gate_up: match tensor.gate_up {
            GateUp::Unknown => None,
            GateUp::Concatenated => Some("concatenated"),
            GateUp::Interleaved => Some("interleaved"),
        },
        values_per_element: tensor.values_per_element,
        sliced: tensor.sliced,
        ranges: tensor
            .ranges
            .iter()
            .map(|range| Range {
                object: range.object.to_string(),
                offset: range.offset,
                bytes: range.bytes,
            })
            .collect(),
    });
    Ok(Block {
        key: KeyReport::from(key),
        block_id: record.id.to_string(),
        image_bytes: layout.bytes,
        source_expert: record.source.map(|source| source.expert),
        router_column: record.source.map(|source| source.column),
        tensors: tensors.collect(),
    })
}

fn projection(projection: Projection) -> &'static str {
    match projection {
        Projection::Gate => "gate",
        Projection::Up => "up",
        Projection::Down => "down",
        Projection::GateUp => "gate_up",
        Projection::Router => "router",
        Projection::TierHead => "tier_head",
        Projection::GroupHeads => "group_heads",
        Projection::Other => "other",
    }
}

fn part(part: Part) -> &'static str {
    match part {
        Part::Weight => "weight",
        Part::Bias => "bias",
        Part::Scale => "scale",
        Part::GlobalScale => "global_scale",
        Part::InputScale => "input_scale",
        Part::ZeroPoint => "zero_point",
        Part::GroupIndex => "group_index",
        Part::Shape => "shape",
        Part::CorrectionBias => "correction_bias",
    }
}
