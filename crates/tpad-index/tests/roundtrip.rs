//! An index gives back the records that it was built from, and refuses any
//! byte that was changed.

use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tpad_index::{EncodedIndex, IndexError, decode_header, decode_segment, encode};
use tpad_manifest::{
    BlockId, BlockRecord, ByteRange, Dtype, GateUp, Index, IndexBuilder, Orientation, Part,
    Projection, Role, Source, TensorRecord, TierId,
};

/// How a generated group's experts are stored.
#[derive(Clone, Copy, Debug)]
enum Style {
    /// Own tensors, numbered by expert.
    Own,
    /// Slices of stacked tensors.
    Stacked,
    /// The second expert is of another shape, so no template fits.
    Uneven,
}

#[derive(Clone, Debug)]
struct Layer {
    layer: u32,
    groups: Vec<Vec<BlockRecord>>,
    router: Option<BlockRecord>,
}

fn tensor(name: String, shape: Vec<u64>, part: Part, ranges: Vec<ByteRange>) -> TensorRecord {
    TensorRecord {
        name: name.into(),
        dtype: Dtype::from("BF16"),
        shape,
        role: Role { projection: Projection::Down, part },
        orientation: Orientation::OutIn,
        gate_up: GateUp::Unknown,
        values_per_element: 1,
        sliced: false,
        ranges,
    }
}

fn range(object: u32, offset: u64, bytes: u64) -> ByteRange {
    ByteRange { object: format!("shard-{object}.safetensors").into(), offset, bytes }
}

fn expert(layer: u32, number: u32, style: Style, at: u64) -> BlockRecord {
    let rows = if matches!(style, Style::Uneven) && number % 2 == 1 { 3 } else { 2 };
    let name = |part: &str| match style {
        Style::Stacked => format!("model.layers.{layer}.mlp.experts.{part}"),
        _ => format!("model.layers.{layer}.mlp.experts.{number}.w2.{part}"),
    };
    let start = at + u64::from(number) * 64;
    let tensors = vec![
        tensor(
            name("weight"),
            vec![rows, 4],
            Part::Weight,
            vec![range(layer % 3, start, rows * 8)],
        ),
        tensor(name("bias"), vec![4], Part::Bias, vec![range(7, start + 32, 8)]),
    ];
    let id = BlockId::of(format!("{layer}/{number}/{at}").as_bytes());
    BlockRecord { id, tensors, source: Some(Source { expert: number, column: number + 1 }) }
}

fn router(layer: u32, pieces: u64) -> BlockRecord {
    let ranges = (0..pieces).map(|n| range(1, (1 << 40) | (n * 100), 8)).collect();
    let name = format!("model.layers.{layer}.mlp.gate.weight");
    let tensors = vec![tensor(name, vec![pieces, 4], Part::Weight, ranges)];
    BlockRecord { id: BlockId::of(&layer.to_le_bytes()), tensors, source: None }
}

/// A layer's groups, each with its experts, style and first byte, and the pieces
/// of its router.
type Drawn = (Vec<(u32, Style, u64)>, u64);

fn layers() -> impl Strategy<Value = Vec<Layer>> {
    let style = prop_oneof![Just(Style::Own), Just(Style::Stacked), Just(Style::Uneven)];
    let group = (0u32..5, style, 0u64..1 << 33);
    let layer = (proptest::collection::vec(group, 0..4), 0u64..4);
    proptest::collection::btree_map(0u32..80, layer, 0..4).prop_map(|layers| {
        let layer = |(layer, (groups, pieces)): (u32, Drawn)| Layer {
            layer,
            groups: groups
                .into_iter()
                .map(|(experts, style, at)| {
                    (0..experts).map(|number| expert(layer, number, style, at)).collect()
                })
                .collect(),
            router: (pieces > 0).then(|| router(layer, pieces)),
        };
        layers.into_iter().map(layer).collect()
    })
}

fn build(layers: &[Layer]) -> Index {
    let mut builder = IndexBuilder::for_tier(&TierId::Name("tier_1b".into()));
    for layer in layers {
        builder
            .push_layer(layer.layer, &layer.groups, layer.router.as_ref())
            .expect("the records are sound");
    }
    builder.finish()
}

fn header_of(encoded: &EncodedIndex) -> Result<tpad_manifest::IndexHeader, IndexError> {
    let end = usize::try_from(encoded.reference.header_bytes).expect("small");
    decode_header(encoded.bytes.get(..end).unwrap_or_default(), &encoded.reference)
}

fn piece(bytes: &[u8], offset: u64, length: u64) -> Bytes {
    let start = usize::try_from(offset).expect("small");
    Bytes::from(bytes[start..start + usize::try_from(length).expect("small")].to_vec())
}

proptest! {
    #[test]
    fn records_come_back_as_they_were_pushed(layers in layers()) {
        let encoded = encode(&build(&layers));
        prop_assert_eq!(encoded.reference.bytes, encoded.bytes.len() as u64);
        let header = header_of(&encoded).expect("what was encoded decodes");
        prop_assert_eq!(header.segments.len(), layers.len());
        let mut parameters = 0;
        for layer in &layers {
            let entry = header.segment(layer.layer).expect("every layer has a segment");
            let bytes = piece(&encoded.bytes, entry.offset, entry.bytes);
            let segment = decode_segment(bytes, entry, &header).expect("it decodes");
            for (group, experts) in layer.groups.iter().enumerate() {
                let group = u32::try_from(group).expect("small");
                for (n, record) in experts.iter().enumerate() {
                    let n = u32::try_from(n).expect("small");
                    let found = segment.expert(&header, group, n);
                    prop_assert_eq!(found.as_ref(), Some(record));
                    parameters += record.parameters().expect("small");
                }
                let beyond = u32::try_from(experts.len()).expect("small");
                prop_assert_eq!(segment.expert(&header, group, beyond), None);
            }
            prop_assert_eq!(segment.router(&header), layer.router.clone());
        }
        prop_assert_eq!(header.parameters(), parameters);
    }

    #[test]
    fn a_changed_or_missing_byte_is_refused(layers in layers(), at in any::<usize>(), flip in 1u8..) {
        let sound = encode(&build(&layers));
        let at = at % sound.bytes.len();
        let mut flipped = sound.clone();
        flipped.bytes[at] ^= flip;
        let mut short = sound.clone();
        short.bytes.truncate(at);
        for damaged in [flipped, short] {
            let refused = header_of(&damaged).is_err() || {
                let header = header_of(&damaged).expect("just checked");
                header.segments.iter().any(|entry| {
                    let start = usize::try_from(entry.offset).expect("small");
                    let end = start + usize::try_from(entry.bytes).expect("small");
                    let bytes = damaged.bytes.get(start..end).unwrap_or_default().to_vec();
                    decode_segment(bytes.into(), entry, &header).is_err()
                })
            };
            prop_assert!(refused);
        }
    }

    #[test]
    fn nonsense_under_a_right_digest_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let digest = tpad_manifest::Digest::of(&bytes);
        let length = bytes.len() as u64;
        let reference = tpad_manifest::IndexRef { digest, header_bytes: length, bytes: length };
        let mut dressed = tpad_index::MAGIC.to_vec();
        dressed.extend_from_slice(&u32::try_from(bytes.len()).expect("small").to_le_bytes());
        dressed.extend_from_slice(&bytes);
        let whole = dressed.len() as u64;
        let named = tpad_manifest::IndexRef {
            digest: tpad_manifest::Digest::of(&dressed),
            header_bytes: whole,
            bytes: whole,
        };
        prop_assert!(decode_header(&bytes, &reference).is_err());
        let _ = decode_header(&dressed, &named);
        let entry = tpad_manifest::SegmentEntry {
            layer: 0, offset: 0, bytes: length, digest, blocks: 1, image_bytes: 0, parameters: 0,
        };
        let _ = decode_segment(bytes.into(), &entry, &tpad_manifest::IndexHeader::default());
    }
}

#[test]
fn equal_content_has_one_name_and_stacked_layers_share_templates() {
    let layer = |layer| Layer {
        layer,
        groups: vec![(0..4).map(|n| expert(layer, n, Style::Own, 0)).collect()],
        router: Some(router(layer, 1)),
    };
    let layers = [layer(3), layer(4), layer(61)];
    let (first, second) = (encode(&build(&layers)), encode(&build(&layers)));
    assert_eq!(first.reference, second.reference);
    let header = header_of(&first).expect("decodes");
    assert_eq!(header.templates.len(), 1, "all layers are spelled by one template");
}

#[test]
fn dense_blocks_are_listed_by_name() {
    let names = ["lm_head.weight", "model.norm.weight"];
    let block = |name: &&str| BlockRecord {
        id: BlockId::of(name.as_bytes()),
        tensors: vec![tensor((*name).into(), vec![2, 2], Part::Weight, vec![range(0, 8, 8)])],
        source: None,
    };
    let blocks: Vec<BlockRecord> = names.iter().map(block).collect();
    let mut builder = IndexBuilder::dense();
    builder.push_dense(&blocks).expect("sound");
    let encoded = encode(&builder.finish());
    let header = header_of(&encoded).expect("decodes");
    let entry = header.segment(0).expect("one segment");
    let bytes = piece(&encoded.bytes, entry.offset, entry.bytes);
    let segment = decode_segment(bytes, entry, &header).expect("decodes");
    let found: Vec<&Arc<str>> = segment.dense_names().collect();
    assert!(found.iter().map(|name| &***name).eq(names));
    assert_eq!(segment.dense(&header, 1).as_ref(), blocks.get(1));
    assert_eq!(header.parameters(), 0, "dense tensors count against no tier");
}

#[test]
fn a_range_beyond_its_object_is_a_problem_with_its_place() {
    let layer = Layer {
        layer: 5,
        groups: vec![(0..2).map(|n| expert(5, n, Style::Own, 100)).collect()],
        router: None,
    };
    let mut index = build(&[layer]);
    for object in &mut index.header.objects {
        object.bytes = 150;
    }
    let encoded = encode(&index);
    let header = header_of(&encoded).expect("the header alone is sound");
    let entry = header.segment(5).expect("there");
    let bytes = piece(&encoded.bytes, entry.offset, entry.bytes);
    let error = decode_segment(bytes, entry, &header).expect_err("beyond the end").to_string();
    assert!(error.contains("layer 5, group 0, expert 1"), "{error}");
    assert!(error.contains("beyond the end of shard-2.safetensors at 150"), "{error}");
}
