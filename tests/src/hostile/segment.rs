//! Index segments.

mod changes;

use self::changes::{CHANGES, WHOLE};
use super::header::Tensor;
use super::proto::{Message, broken_tails};
use super::{Cases, Claim, Kind};

/// A segment's message, in plain values that a case changes.
#[derive(Clone, Debug)]
struct Segment {
    layer: u64,
    groups: Vec<(u64, u64)>,
    block_ids: Vec<u8>,
    source_experts: Vec<u8>,
    router_columns: Vec<u8>,
    objects: Vec<u8>,
    offsets: Vec<u8>,
    loose: Vec<Loose>,
    tail: Vec<u8>,
}

/// A block that is spelled out: its tensors with their ranges, each an object,
/// an offset and a size.
#[derive(Clone, Debug)]
struct Loose {
    id: Vec<u8>,
    tensors: Vec<(Option<Tensor>, Vec<[u64; 3]>)>,
}

/// A right segment, and what its header's entry says of it.
#[derive(Clone, Debug)]
pub struct SoundSegment {
    /// The segment.
    pub bytes: Vec<u8>,
    /// Its layer.
    pub layer: u32,
    /// Its blocks.
    pub blocks: u64,
    /// The sum of their images.
    pub image_bytes: u64,
    /// Its experts' parameters.
    pub parameters: u64,
}

/// In a group's template: its experts are spelled out.
const LOOSE: u64 = 0xffff_ffff;

impl Segment {
    /// Two experts of the header's template, one spelled out, and a router.
    fn sound() -> Self {
        let loose = |name: &str, projection, at| {
            let tensor = Tensor { projection, ..Tensor::sound(name) };
            Loose { id: vec![9; 32], tensors: vec![(Some(tensor), vec![[1, at, 16]])] }
        };
        let u32s = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        Self {
            layer: 3,
            groups: vec![(2, 0), (1, LOOSE)],
            block_ids: (0..96).collect(),
            source_experts: u32s(&[0, 1, 2]),
            router_columns: u32s(&[0, 1, 2]),
            objects: u32s(&[0, 0, 0, 0]),
            offsets: [0u64, 16, 24, 40].iter().flat_map(|n| n.to_le_bytes()).collect(),
            loose: vec![
                loose("model.layers.3.mlp.experts.2.w2.weight", 3, 0),
                loose("model.layers.3.mlp.gate.weight", 5, 16),
            ],
            tail: Vec::new(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut message = Message::default().unless_zero(1, self.layer);
        for (experts, template) in &self.groups {
            let run = Message::default().unless_zero(1, *experts).unless_zero(2, *template);
            message = message.message(2, &run);
        }
        let columns = [
            &self.block_ids,
            &self.source_experts,
            &self.router_columns,
            &self.objects,
            &self.offsets,
        ];
        for (field, column) in (3..).zip(columns) {
            message = message.bytes(field, column);
        }
        for block in &self.loose {
            message = message.message(8, &block.message());
        }
        message.raw(&self.tail).0
    }

    /// The first range of the spelled out expert.
    fn range(&mut self) -> &mut [u64; 3] {
        &mut self.loose[0].tensors[0].1[0]
    }

    /// The spelled out expert's tensor.
    fn tensor(&mut self) -> &mut Tensor {
        self.loose[0].tensors[0].0.as_mut().expect("a sound segment has it")
    }

    fn offset(&mut self, cell: usize, offset: u64) {
        self.offsets[cell * 8..][..8].copy_from_slice(&offset.to_le_bytes());
    }
}

impl Loose {
    fn message(&self) -> Message {
        let block = Message::default().bytes(1, &self.id);
        self.tensors.iter().fold(block, |block, (tensor, ranges)| {
            let loose = Message::default();
            let loose = match tensor {
                Some(tensor) => loose.message(1, &tensor.message()),
                None => loose,
            };
            let loose = ranges.iter().fold(loose, |loose, [object, offset, bytes]| {
                let range = Message::default().unless_zero(1, *object);
                loose.message(2, &range.unless_zero(2, *offset).unless_zero(3, *bytes))
            });
            block.message(2, &loose)
        })
    }
}

/// A segment that is right for [`super::sound_header`].
#[must_use]
pub fn sound() -> SoundSegment {
    let bytes = Segment::sound().encode();
    SoundSegment { bytes, layer: 3, blocks: 4, image_bytes: 1536, parameters: 32 }
}

/// A segment of dense tensors that is right for [`super::header::sound_dense`].
pub(super) fn sound_dense() -> Vec<u8> {
    let mut segment = Segment::sound();
    segment.layer = 0;
    segment.groups.clear();
    let Segment { block_ids, source_experts, router_columns, objects, offsets, .. } = &mut segment;
    for column in [block_ids, source_experts, router_columns, objects, offsets] {
        column.clear();
    }
    segment.encode()
}

pub(super) fn cases(cases: &mut Cases) {
    let kind = Kind::Segment;
    for (name, change, place, says) in CHANGES {
        let mut segment = Segment::sound();
        change(&mut segment);
        cases.add(kind, name, segment.encode(), place, says);
    }
    for (name, tail) in broken_tails() {
        let mut segment = Segment::sound();
        segment.tail = tail;
        cases.add(kind, &format!("ends-with-{name}"), segment.encode(), WHOLE, "malformed");
    }
    let sound = sound().bytes;
    for cut in [1, 2, 3, 20, 57, 90, 130, 150, 200, 230] {
        let bytes = &sound[..sound.len() - cut];
        cases.add(kind, &format!("cut-by-{cut}"), bytes, WHOLE, "malformed");
    }
    cases.add(kind, "empty", Vec::new(), "layer 3", "says it is layer 0");
    cases.add(kind, "a-header", super::header::sound().0, WHOLE, "malformed");
    cases.add(kind, "a-revision", super::revision::sound().into_bytes(), WHOLE, "malformed");
    let lies = [
        ("claimed-other-digest", Claim::OtherDigest, "digest"),
        ("claimed-one-more", Claim::OneMore, "bytes"),
        ("claimed-one-less", Claim::OneLess, "bytes"),
        ("claimed-endless", Claim::Endless, "bytes"),
    ];
    for (name, claim, says) in lies {
        cases.claimed(kind, name, claim, sound.clone(), WHOLE, says);
    }
}
