//! Fixtures: checkpoints without bytes, and the blocks that they must give.
//!
//! A fixture is a text file: a line `config` with `config.json` on it, lines
//! `tensor NAME DTYPE SHAPE`, then `expect` and what [`describe`] must write.
//! In names, `{0..2}` counts and `{a,b}` lists. Tensors follow one another in
//! their object from an odd offset; `object NAME` starts another object.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::Value;
use tpad_manifest::{
    Dtype, GateUp, GroupScoring, LayerKind, Orientation, Part, Projection, TensorRecord,
};
use tpad_publish::{Checkpoint, DraftBlock, ShardTensor};

/// Where the first tensor of an object lies.
const START: u64 = 1001;

/// A checkpoint without bytes.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) config: Value,
    pub(crate) tensors: Vec<ShardTensor>,
    pub(crate) expected: String,
}

impl Fixture {
    pub(crate) fn load(name: &str) -> Self {
        let path = format!("{}/tests/layouts/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).expect("the fixture is there");
        Self::parse(&text)
    }

    pub(crate) fn parse(text: &str) -> Self {
        let (head, expected) = text.split_once("\nexpect\n").unwrap_or((text, ""));
        let mut fixture =
            Self { config: Value::Null, tensors: Vec::new(), expected: expected.into() };
        let mut object: Arc<str> = "model.safetensors".into();
        let mut offset = START;
        for line in head.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "config" => fixture.config = serde_json::from_str(rest).expect("config.json"),
                "object" => (object, offset) = (rest.into(), START),
                "tensor" => {
                    for tensor in tensors(rest, &object, &mut offset) {
                        fixture.tensors.push(tensor);
                    }
                }
                _ => assert!(word.is_empty() || word == "#", "what is {line:?}?"),
            }
        }
        fixture
    }

    /// Takes a tensor away.
    pub(crate) fn without(mut self, name: &str) -> Self {
        let before = self.tensors.len();
        self.tensors.retain(|tensor| &*tensor.name != name);
        assert_eq!(self.tensors.len() + 1, before, "{name} was not there");
        self
    }

    /// Gives a tensor another shape, and the size that goes with it.
    pub(crate) fn reshaped(mut self, name: &str, shape: &[u64]) -> Self {
        let tensor = self.tensors.iter_mut().find(|t| &*t.name == name).expect("the tensor");
        tensor.shape = shape.to_vec();
        tensor.bytes = tensor.dtype.tensor_bytes(shape).expect("a size");
        self
    }

    /// Adds the tensors of a fixture's line.
    pub(crate) fn with(mut self, line: &str) -> Self {
        let object = "added.safetensors".into();
        self.tensors.extend(tensors(line, &object, &mut 8));
        self
    }

    /// Sets a key of `config.json`; `null` takes it away.
    pub(crate) fn set(mut self, key: &str, value: Value) -> Self {
        let config = self.config.as_object_mut().expect("an object");
        if value.is_null() {
            config.remove(key)
        } else {
            config.insert(key.into(), value)
        };
        self
    }
}

fn tensors(line: &str, object: &Arc<str>, offset: &mut u64) -> Vec<ShardTensor> {
    let mut words = line.split_whitespace();
    let mut word = || words.next().expect("NAME DTYPE SHAPE");
    let (name, dtype, shape) = (word(), word(), word());
    let dtype = Dtype::from(dtype);
    let shape: Vec<u64> = match shape {
        "-" => Vec::new(),
        shape => shape.split('x').map(|dim| dim.parse().expect("a dimension")).collect(),
    };
    let bytes = dtype.tensor_bytes(&shape).expect("a size");
    let tensor = |name: String| {
        let tensor = ShardTensor {
            name: name.into(),
            dtype: dtype.clone(),
            shape: shape.clone(),
            object: object.clone(),
            offset: *offset,
            bytes,
        };
        *offset += bytes;
        tensor
    };
    expand(name).into_iter().map(tensor).collect()
}

fn expand(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.into()] };
    let (choice, after) = rest.split_once('}').expect("a closing brace");
    let choices: Vec<String> = match choice.split_once("..") {
        Some((first, last)) => {
            let number = |text: &str| text.parse::<u32>().expect("a number");
            (number(first)..=number(last)).map(|n| n.to_string()).collect()
        }
        None => choice.split(',').map(str::to_string).collect(),
    };
    let expanded = |choice: &String| expand(&format!("{before}{choice}{after}"));
    choices.iter().flat_map(expanded).collect()
}

/// Everything that was recognised, for people to read and check.
pub(crate) fn describe(checkpoint: &Checkpoint, tensors: &[ShardTensor]) -> String {
    let mut text = String::new();
    let out = &mut text;
    let s = &checkpoint.scoring;
    let quantization = checkpoint.quantization.as_deref().unwrap_or("none");
    line(out, format_args!("family: {}", checkpoint.family));
    line(out, format_args!("quantization: {quantization}"));
    line(
        out,
        format_args!(
            "scoring: {:?}, correction bias {}, normalize {}, scale {}",
            s.function, s.correction_bias, s.normalize, s.scale
        ),
    );
    if s.groups != GroupScoring::default() {
        line(out, format_args!("groups: {:?}", s.groups));
    }
    let k = checkpoint.experts_per_token.map_or("?".into(), |k| k.to_string());
    let (groups, chosen) = (checkpoint.groups, checkpoint.groups_per_token);
    line(out, format_args!("routing: {k} experts, {chosen} of {groups} groups"));
    for layer in &checkpoint.layers {
        let kind = if layer.kind == LayerKind::Mtp { ", mtp" } else { "" };
        let size = |size: Option<u64>| size.map_or("?".into(), |size| size.to_string());
        let (hidden, inner) = (size(layer.size.hidden), size(layer.size.intermediate));
        line(out, format_args!("layer {}{kind}: hidden {hidden}, inner {inner}", layer.layer));
        for (n, block) in layer.experts.iter().enumerate() {
            let source = block.source.expect("an expert has a source");
            assert_eq!((source.expert as usize, source.column as usize), (n, n));
            line(out, format_args!("  expert {n}: {} parameters", parameters(block)));
            for tensor in &block.tensors {
                line(out, format_args!("    {}", record(tensor, tensors)));
            }
        }
        line(out, format_args!("  router"));
        for tensor in &layer.router {
            let rows = match tensor.rows {
                Some(rows) => format!("{rows} rows"),
                None if tensor.cuttable => "for all rows".into(),
                None => "not to be cut".into(),
            };
            line(out, format_args!("    {} ({rows})", record(&tensor.record, tensors)));
        }
    }
    line(out, format_args!("dense"));
    for block in &checkpoint.dense {
        assert!(block.source.is_none());
        for tensor in &block.tensors {
            line(out, format_args!("  {}", record(tensor, tensors)));
        }
    }
    for note in &checkpoint.notes {
        line(out, format_args!("note: {note}"));
    }
    text
}

fn line(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(out, "{arguments}").expect("a string takes all");
}

fn parameters(block: &DraftBlock) -> u64 {
    block.tensors.iter().map(|tensor| tensor.parameters().expect("small")).sum()
}

/// A tensor in one line; ranges count from the start of the whole tensor.
fn record(record: &TensorRecord, tensors: &[ShardTensor]) -> String {
    let whole = tensors.iter().find(|t| t.name == record.name).expect("a tensor of the fixture");
    let mut words: Vec<String> = vec![
        match record.role.projection {
            Projection::Gate => "gate",
            Projection::Up => "up",
            Projection::Down => "down",
            Projection::GateUp => "gate_up",
            Projection::Router => "router",
            Projection::TierHead => "tier_head",
            Projection::GroupHeads => "group_heads",
            Projection::Other => "other",
        }
        .into(),
        match record.role.part {
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
        .into(),
        record.dtype.to_string(),
        format!("{:?}", record.shape).replace(", ", "x"),
    ];
    match record.orientation {
        Orientation::Unknown => {}
        Orientation::OutIn => words.push("out_in".into()),
        Orientation::InOut => words.push("in_out".into()),
    }
    match record.gate_up {
        GateUp::Unknown => {}
        GateUp::Concatenated => words.push("concatenated".into()),
        GateUp::Interleaved => words.push("interleaved".into()),
    }
    if record.values_per_element != 1 {
        words.push(format!("{} per element", record.values_per_element));
    }
    words.push(format!("= {}", record.name));
    let mut total = 0;
    for range in &record.ranges {
        assert_eq!(range.object, whole.object, "{}", record.name);
        let start = range.offset.checked_sub(whole.offset).expect("within the tensor");
        assert!(start + range.bytes <= whole.bytes, "{} ends within its tensor", record.name);
        if record.sliced {
            words.push(format!("{start}+{}", range.bytes));
        } else {
            assert_eq!((start, range.bytes), (0, whole.bytes), "{}", record.name);
        }
        total += range.bytes;
    }
    assert_eq!(Ok(total), record.bytes(), "{}: ranges and shape agree", record.name);
    words.join(" ")
}
