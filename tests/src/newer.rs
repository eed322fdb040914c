//! Documents and indexes as a newer minor version may write them: with fields
//! and values that nobody knows yet.

use serde_json::{Value, json};
use tpad_manifest::Digest;

/// A number that no message of this version uses.
const UNKNOWN_FIELD: u64 = 1000;

const PREAMBLE_BYTES: usize = 12;

/// Adds an unknown field to every object of a manifest, except to those whose
/// names are the publisher's own (`files` and `tier_sets`).
pub fn grow_document(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match name.as_str() {
                    "tier_sets" => {}
                    "files" => grow_each(field),
                    _ => grow_document(field),
                }
            }
            let novelty = json!({"deep": [null, 1.5, {"a": "b"}], "format_version": "9.9"});
            fields.insert("novelty".to_owned(), novelty);
        }
        Value::Array(items) => items.iter_mut().for_each(grow_document),
        _ => {}
    }
}

fn grow_each(fields: &mut Value) {
    let fields = fields.as_object_mut().expect("an object");
    fields.values_mut().for_each(grow_document);
}

/// The fields of a message that are messages themselves.
struct Shape(&'static [(u64, Shape)]);

const LEAF: Shape = Shape(&[]);
const TEMPLATE: Shape = Shape(&[(1, LEAF)]);
const LOOSE: Shape = Shape(&[(2, Shape(&[(1, LEAF), (2, LEAF)]))]);
const SEGMENT: Shape = Shape(&[(2, LEAF), (8, LOOSE)]);

/// The index object with an unknown field in every message of it, and the
/// reference to it that belongs into the manifest.
///
/// # Panics
/// When the object is no index.
#[must_use]
pub fn grow_index(object: &[u8]) -> (Vec<u8>, Value) {
    let header_end = PREAMBLE_BYTES + number(&object[8..PREAMBLE_BYTES]);
    let fields = fields(&object[PREAMBLE_BYTES..header_end]);
    let segments: Vec<Vec<u8>> = fields
        .iter()
        .filter(|field| field.number == 4)
        .map(|field| {
            let entry = Entry::read(&field.payload);
            grow(&object[entry.offset..entry.offset + entry.bytes], &SEGMENT)
        })
        .collect();
    // A segment's place is written in as many bytes as it takes: repeat until
    // the header's length holds.
    let mut start = header_end;
    loop {
        let mut header = Vec::new();
        let (mut offset, mut rest) = (start, segments.iter());
        for field in &fields {
            let payload = match field.number {
                2 => grow(&field.payload, &LEAF),
                3 => grow(&field.payload, &TEMPLATE),
                4 => {
                    let segment = rest.next().expect("one for each entry");
                    let entry = moved(&field.payload, offset, segment);
                    offset += segment.len();
                    grow(&entry, &LEAF)
                }
                _ => field.payload.clone(),
            };
            write(&mut header, &Field { payload, ..field.clone() });
        }
        let header = grow(&header, &LEAF);
        if PREAMBLE_BYTES + header.len() == start {
            let mut object = object[..8].to_vec();
            let length = u32::try_from(header.len()).expect("a short header");
            object.extend(length.to_le_bytes());
            object.extend(header);
            let digest = Digest::of(&object).to_string();
            segments.iter().for_each(|segment| object.extend(segment));
            let bytes = object.len();
            return (object, json!({"digest": digest, "header_bytes": start, "bytes": bytes}));
        }
        start = PREAMBLE_BYTES + header.len();
    }
}

/// What a tensor's description says that nobody knows yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Novelty {
    /// A projection.
    Projection,
    /// A part.
    Part,
    /// An element type.
    Dtype,
}

impl Novelty {
    /// The number of the field, and what it says then. As long as what any of
    /// ours says, so that nothing in the object moves.
    fn field(self) -> (u64, Vec<u8>) {
        match self {
            Self::Projection => (4, written(77)),
            Self::Part => (5, written(77)),
            Self::Dtype => (2, b"BF61".to_vec()),
        }
    }
}

/// The index object whose experts' tensors are described with a novelty, and the
/// reference to it that belongs into the manifest.
///
/// # Panics
/// When the object is no index, or what is replaced is of another length.
#[must_use]
pub fn strange_index(object: &[u8], novelty: Novelty) -> (Vec<u8>, Value) {
    let start = PREAMBLE_BYTES + number(&object[8..PREAMBLE_BYTES]);
    let (wanted, novel) = novelty.field();
    let tensor = |message: &[u8]| {
        rewritten(message, |field| {
            if field.number == wanted { novel.clone() } else { field.payload.clone() }
        })
    };
    let template = |message: &[u8]| rewritten(message, |field| tensor(&field.payload));
    let header = rewritten(&object[PREAMBLE_BYTES..start], |field| match field.number {
        3 => template(&field.payload),
        _ => field.payload.clone(),
    });
    assert_eq!(header.len(), start - PREAMBLE_BYTES, "nothing may move");
    let mut strange = object.to_vec();
    strange[PREAMBLE_BYTES..start].copy_from_slice(&header);
    assert_ne!(strange, object, "there is nothing to replace");
    let digest = Digest::of(&strange[..start]).to_string();
    let bytes = strange.len();
    (strange, json!({"digest": digest, "header_bytes": start, "bytes": bytes}))
}

fn rewritten(message: &[u8], change: impl Fn(&Field) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields(message) {
        let payload = change(&field);
        write(&mut out, &Field { payload, ..field });
    }
    out
}

/// One field of a message: its payload, a number's in its written form.
#[derive(Clone, Debug)]
struct Field {
    number: u64,
    wire_type: u64,
    payload: Vec<u8>,
}

/// Where a segment lies.
struct Entry {
    offset: usize,
    bytes: usize,
}

impl Entry {
    fn read(message: &[u8]) -> Self {
        let value = |wanted| {
            let fields = fields(message);
            let field = fields.iter().find(|field| field.number == wanted);
            usize::try_from(varint(&mut &*field.expect("it is written").payload)).expect("small")
        };
        Self { offset: value(2), bytes: value(3) }
    }
}

/// A segment's entry for another place and other bytes.
fn moved(entry: &[u8], offset: usize, segment: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for mut field in fields(entry) {
        match field.number {
            2 => field.payload = written(offset as u64),
            3 => field.payload = written(segment.len() as u64),
            4 => field.payload = Digest::of(segment).as_bytes().to_vec(),
            _ => {}
        }
        write(&mut out, &field);
    }
    out
}

/// The message with an unknown number and an unknown message in it and in all
/// that it holds.
fn grow(message: &[u8], Shape(nested): &Shape) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields(message) {
        let shape = nested.iter().find(|(number, _)| *number == field.number);
        let payload = shape.map(|(_, shape)| grow(&field.payload, shape));
        write(&mut out, &Field { payload: payload.unwrap_or(field.payload), ..field });
    }
    write(&mut out, &Field { number: UNKNOWN_FIELD, wire_type: 0, payload: written(7) });
    let unknown = b"from another time".to_vec();
    write(&mut out, &Field { number: UNKNOWN_FIELD + 1, wire_type: 2, payload: unknown });
    out
}

fn fields(mut message: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let payload = match tag & 7 {
            0 => written(varint(&mut message)),
            2 => {
                let length = usize::try_from(varint(&mut message)).expect("small");
                let (payload, rest) = message.split_at(length);
                message = rest;
                payload.to_vec()
            }
            other => unreachable!("indexes have no fields of wire type {other}"),
        };
        fields.push(Field { number: tag >> 3, wire_type: tag & 7, payload });
    }
    fields
}

fn write(out: &mut Vec<u8>, field: &Field) {
    out.extend(written(field.number << 3 | field.wire_type));
    if field.wire_type == 2 {
        out.extend(written(field.payload.len() as u64));
    }
    out.extend(&field.payload);
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("it ends inside the message");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn written(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

fn number(bytes: &[u8]) -> usize {
    let bytes = bytes.try_into().expect("four bytes");
    usize::try_from(u32::from_le_bytes(bytes)).expect("it fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grown_message_holds_what_it_held_and_more() {
        let mut inner = Vec::new();
        write(&mut inner, &Field { number: 1, wire_type: 0, payload: written(300) });
        let mut message = Vec::new();
        write(&mut message, &Field { number: 2, wire_type: 2, payload: inner.clone() });
        let grown = fields(&grow(&message, &Shape(&[(2, LEAF)])));
        let numbers: Vec<u64> = grown.iter().map(|field| field.number).collect();
        assert_eq!(numbers, [2, UNKNOWN_FIELD, UNKNOWN_FIELD + 1]);
        assert!(grown[0].payload.starts_with(&inner) && grown[0].payload.len() > inner.len());
        assert_eq!(varint(&mut &*written(u64::MAX)), u64::MAX);
    }

    #[test]
    fn every_object_of_a_document_grows_and_no_name_of_the_publishers() {
        let mut document = json!({
            "tiers": [{"groups": [{"experts": 1}]}],
            "files": {"config.json": {"bytes": 1}},
            "tier_sets": {"small": []},
        });
        grow_document(&mut document);
        assert_eq!(document.to_string().matches("novelty").count(), 4);
        assert!(document["files"]["config.json"].get("novelty").is_some());
        assert_eq!(document["tier_sets"], json!({"small": []}));
    }
}
