//! Index headers.

mod changes;

use self::changes::CHANGES;
use super::proto::{Message, broken_tails};
use super::{Cases, Claim, Kind};

/// A header's message, in plain values that a case changes.
#[derive(Clone, Debug)]
struct Header {
    tier: Vec<u8>,
    objects: Vec<(Vec<u8>, u64)>,
    templates: Vec<Vec<Tensor>>,
    segments: Vec<Entry>,
    tail: Vec<u8>,
}

/// A tensor's template.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) name: Vec<u8>,
    pub(super) dtype: Vec<u8>,
    pub(super) shape: Vec<u64>,
    pub(super) projection: u64,
    pub(super) part: u64,
    pub(super) orientation: u64,
    pub(super) gate_up: u64,
    pub(super) values_per_element: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    layer: u64,
    offset: u64,
    bytes: u64,
    digest: Vec<u8>,
    blocks: u64,
    image_bytes: u64,
    parameters: u64,
}

impl Tensor {
    /// A matrix of 2 by 4 in BF16: 16 bytes.
    pub(super) fn sound(name: &str) -> Self {
        Self {
            name: name.into(),
            dtype: b"BF16".to_vec(),
            shape: vec![2, 4],
            projection: 3,
            part: 1,
            orientation: 1,
            gate_up: 0,
            values_per_element: 1,
        }
    }

    pub(super) fn message(&self) -> Message {
        Message::default()
            .bytes(1, &self.name)
            .bytes(2, &self.dtype)
            .packed(3, &self.shape)
            .unless_zero(4, self.projection)
            .unless_zero(5, self.part)
            .unless_zero(6, self.orientation)
            .unless_zero(7, self.gate_up)
            .unless_zero(8, self.values_per_element)
    }
}

impl Header {
    /// Two objects, one template of two tensors, layers 3 and 5.
    fn sound() -> Self {
        let entry = |layer, offset| Entry {
            layer,
            offset,
            bytes: 100,
            digest: vec![7; 32],
            blocks: 4,
            image_bytes: 1536,
            parameters: 32,
        };
        let name = |part: &str| format!("model.layers.{{layer}}.mlp.experts.{{expert}}.{part}");
        let mut bias = Tensor::sound(&name("w2.bias"));
        (bias.part, bias.shape) = (2, vec![4]);
        let mut header = Self {
            tier: b"a".to_vec(),
            objects: vec![(b"x.safetensors".to_vec(), 4096), (b"y.safetensors".to_vec(), 4096)],
            templates: vec![vec![Tensor::sound(&name("w2.weight")), bias]],
            segments: vec![entry(3, 0), entry(5, 0)],
            tail: Vec::new(),
        };
        header.place();
        header
    }

    /// Lays the segments behind the header, one after the other.
    fn place(&mut self) {
        // A place that is written longer moves the end once more.
        for _ in 0..4 {
            let mut end = self.encode().len() as u64;
            for entry in &mut self.segments {
                entry.offset = end;
                end += entry.bytes;
            }
        }
    }

    fn message(&self) -> Message {
        let mut message = Message::default().bytes(1, &self.tier);
        for (path, bytes) in &self.objects {
            let object = Message::default().bytes(1, path).unless_zero(2, *bytes);
            message = message.message(2, &object);
        }
        for template in &self.templates {
            let tensors = template
                .iter()
                .fold(Message::default(), |message, tensor| message.message(1, &tensor.message()));
            message = message.message(3, &tensors);
        }
        for entry in &self.segments {
            let entry = Message::default()
                .unless_zero(1, entry.layer)
                .unless_zero(2, entry.offset)
                .unless_zero(3, entry.bytes)
                .bytes(4, &entry.digest)
                .unless_zero(5, entry.blocks)
                .unless_zero(6, entry.image_bytes)
                .unless_zero(7, entry.parameters);
            message = message.message(4, &entry);
        }
        message.raw(&self.tail)
    }

    fn encode(&self) -> Vec<u8> {
        preamble(&self.message().0)
    }

    fn object_bytes(&self) -> u64 {
        let last = self.segments.last();
        last.map_or(self.encode().len() as u64, |entry| entry.offset.wrapping_add(entry.bytes))
    }
}

/// A header's message behind its preamble.
pub(super) fn preamble(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [b"TPADIDX1", &length.to_le_bytes()[..], message].concat()
}

/// A header that is right, and the size of its object.
#[must_use]
pub fn sound() -> (Vec<u8>, u64) {
    let header = Header::sound();
    (header.encode(), header.object_bytes())
}

/// An index object that is right but for its one segment, and the size of its
/// header.
#[must_use]
pub fn around(segment: &[u8]) -> (Vec<u8>, u64) {
    let mut header = Header::sound();
    header.segments.truncate(1);
    header.segments[0].bytes = segment.len() as u64;
    header.segments[0].digest = blake3::hash(segment).as_bytes().to_vec();
    header.place();
    let header = header.encode();
    ([&header, segment].concat(), header.len() as u64)
}

/// The header of an index of dense tensors, and the size of its object.
pub(super) fn sound_dense() -> (Vec<u8>, u64) {
    let mut header = Header::sound();
    header.tier.clear();
    header.templates.clear();
    header.segments.truncate(1);
    let entry = &mut header.segments[0];
    (entry.layer, entry.blocks, entry.image_bytes, entry.parameters) = (0, 2, 512, 0);
    header.place();
    (header.encode(), header.object_bytes())
}

pub(super) fn cases(cases: &mut Cases) {
    let kind = Kind::Header;
    for (name, change, place, says) in CHANGES {
        let mut header = Header::sound();
        change(&mut header);
        // Changes of the segments' places are meant as they are.
        if !name.starts_with("segment") {
            header.place();
        }
        let whole = Claim::Whole(header.object_bytes());
        cases.claimed(kind, name, whole, header.encode(), place, says);
    }
    for (name, tail) in broken_tails() {
        let mut header = Header::sound();
        header.tail = tail;
        header.place();
        let whole = Claim::Whole(header.object_bytes());
        let name = format!("ends-with-{name}");
        cases.claimed(kind, &name, whole, header.encode(), "index header", "malformed");
    }
    let (sound, whole) = sound();
    for length in [0, 4, 8, 11] {
        let name = format!("cut-to-{length}");
        cases.add(kind, &name, &sound[..length], "index header", "preamble");
    }
    // The length in the preamble no longer fits.
    for cut in [1, 17, sound.len() / 2] {
        let name = format!("cut-by-{cut}");
        cases.add(kind, &name, &sound[..sound.len() - cut], "index header", "length contradicts");
    }
    // The length fits, the message does not.
    let message = &sound[12..];
    for cut in [1, 2, 30, 40, 41, 70, 71, 99, 150] {
        let bytes = preamble(&message[..message.len() - cut]);
        cases.add(kind, &format!("message-cut-by-{cut}"), bytes, "index header", "malformed");
    }
    let other_magic = [b"TPADIDX2", &sound[8..]].concat();
    cases.add(kind, "another-magic", other_magic, "index header", "TPADIDX1");
    cases.add(kind, "a-shard", super::shard::sound().0, "index header", "TPADIDX1");
    let mut longer = sound.clone();
    longer[8] = longer[8].wrapping_add(1);
    cases.add(kind, "length-one-more", longer, "index header", "length contradicts");
    let trailing = [&sound[..], b"\0"].concat();
    cases.add(kind, "trailing-byte", trailing, "index header", "length contradicts");
    let lies = [
        ("claimed-other-digest", Claim::OtherDigest, "digest"),
        ("claimed-one-more", Claim::OneMore, "bytes"),
        ("claimed-one-less", Claim::OneLess, "bytes"),
        ("claimed-endless", Claim::Endless, "at most 4194304"),
        ("object-too-short", Claim::Whole(whole - 1), "the manifest says"),
        ("object-too-long", Claim::Whole(whole + 1), "the manifest says"),
    ];
    for (name, claim, says) in lies {
        cases.claimed(kind, name, claim, sound.clone(), "index header", says);
    }
}
