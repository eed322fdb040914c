//! What a message may make its decoder allocate, counted before it decodes.
//!
//! An empty message takes two bytes on the wire and a hundred in memory, so a
//! bound on bytes alone bounds nothing. These walks count what the decoder
//! would make of a message and read nothing else of it.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Shards and other objects; the largest published checkpoints have hundreds.
const MAX_OBJECTS: usize = 65_536;
/// Shapes of blocks, and tensors of all of them together.
const MAX_TEMPLATES: usize = 4096;
const MAX_TEMPLATE_TENSORS: usize = 65_536;
/// As many as a manifest may have layers.
const MAX_SEGMENTS: usize = 65_536;
/// As many as a tier may have groups.
const MAX_GROUPS: usize = 65_536;
/// Blocks that are spelled out in one segment: a layer's uneven experts, or all
/// dense tensors; the largest published checkpoints have a few thousand.
const MAX_LOOSE: usize = 65_536;
const MAX_LOOSE_TENSORS: usize = 131_072;
const MAX_LOOSE_RANGES: usize = 262_144;
/// NumPy has the same limit.
const MAX_RANK: usize = 64;
/// Of all tensors of one message: a dimension takes a byte on the wire and
/// eight in memory. Tensors have one to three.
const MAX_DIMENSIONS: usize = 1 << 19;
/// As for tensors in shards, and for paths in object stores.
const MAX_NAME_BYTES: usize = 1024;
/// The longest name of an element type has a dozen letters.
const MAX_DTYPE_BYTES: usize = 64;
/// As for tier ids in manifests.
const MAX_TIER_BYTES: usize = 128;

/// One field's value.
enum Value<'a> {
    Varint,
    Bytes(&'a [u8]),
    Other,
}

/// Shows every field of a message to `see`.
fn walk<'a>(
    mut message: &'a [u8],
    mut see: impl FnMut(u32, Value<'a>) -> Result<(), String>,
) -> Result<(), String> {
    while !message.is_empty() {
        let (tag, wire) = decode_key(&mut message).map_err(|error| error.to_string())?;
        let value = match wire {
            WireType::Varint => {
                decode_varint(&mut message).map_err(|error| error.to_string())?;
                Value::Varint
            }
            WireType::LengthDelimited => {
                let length = decode_varint(&mut message).map_err(|error| error.to_string())?;
                let cut = usize::try_from(length).ok().and_then(|n| message.split_at_checked(n));
                let (bytes, rest) = cut.ok_or("a field is longer than its message")?;
                message = rest;
                Value::Bytes(bytes)
            }
            _ => {
                let context = DecodeContext::default();
                skip_field(wire, tag, &mut message, context).map_err(|error| error.to_string())?;
                Value::Other
            }
        };
        see(tag, value)?;
    }
    Ok(())
}

/// Counts one more of something there may be `most` of.
fn count(so_far: &mut usize, most: usize, what: &str) -> Result<(), String> {
    *so_far += 1;
    if *so_far > most { Err(format!("more than {most} {what}")) } else { Ok(()) }
}

fn short(bytes: &[u8], most: usize, what: &str) -> Result<(), String> {
    if bytes.len() <= most {
        return Ok(());
    }
    Err(format!("a {what} of {} bytes, at most {most} bytes are read", bytes.len()))
}

/// Refuses an `IndexHeader` that would take more memory than any real one.
pub(crate) fn header(message: &[u8]) -> Result<(), String> {
    let (mut objects, mut templates, mut tensors, mut segments) = (0, 0, 0, 0);
    let mut dimensions = 0;
    walk(message, |tag, value| match (tag, value) {
        (1, Value::Bytes(tier)) => short(tier, MAX_TIER_BYTES, "tier's id"),
        (2, Value::Bytes(object)) => {
            count(&mut objects, MAX_OBJECTS, "objects")?;
            let path = |tag, value| match (tag, value) {
                (1, Value::Bytes(path)) => short(path, MAX_NAME_BYTES, "path"),
                _ => Ok(()),
            };
            walk(object, path).map_err(|error| format!("object {}: {error}", objects - 1))
        }
        (3, Value::Bytes(template)) => {
            count(&mut templates, MAX_TEMPLATES, "templates")?;
            let block = |tag, value| match (tag, value) {
                (1, Value::Bytes(message)) => {
                    count(&mut tensors, MAX_TEMPLATE_TENSORS, "tensors in all templates")?;
                    tensor(message, &mut dimensions)
                }
                _ => Ok(()),
            };
            walk(template, block).map_err(|error| format!("template {}: {error}", templates - 1))
        }
        (4, Value::Bytes(_)) => count(&mut segments, MAX_SEGMENTS, "segments"),
        _ => Ok(()),
    })
}

/// Refuses an `IndexSegment` that would take much more memory than its bytes.
pub(crate) fn segment(message: &[u8]) -> Result<(), String> {
    let (mut groups, mut blocks, mut tensors, mut ranges) = (0, 0, 0, 0);
    let mut dimensions = 0;
    walk(message, |tag, value| match (tag, value) {
        (2, Value::Bytes(_)) => count(&mut groups, MAX_GROUPS, "groups"),
        (8, Value::Bytes(block)) => {
            count(&mut blocks, MAX_LOOSE, "blocks that are spelled out")?;
            let place = blocks - 1;
            let loose = |tag, value| match (tag, value) {
                (2, Value::Bytes(message)) => {
                    count(&mut tensors, MAX_LOOSE_TENSORS, "tensors that are spelled out")?;
                    walk(message, |tag, value| match (tag, value) {
                        (1, Value::Bytes(message)) => tensor(message, &mut dimensions),
                        (2, Value::Bytes(_)) => count(&mut ranges, MAX_LOOSE_RANGES, "ranges"),
                        _ => Ok(()),
                    })
                }
                _ => Ok(()),
            };
            walk(block, loose).map_err(|error| format!("loose block {place}: {error}"))
        }
        _ => Ok(()),
    })
}

/// A `TensorTemplate`'s name, type and rank.
fn tensor(message: &[u8], dimensions: &mut usize) -> Result<(), String> {
    let mut rank = 0;
    let mut dimension = || {
        count(&mut rank, MAX_RANK, "dimensions")?;
        count(dimensions, MAX_DIMENSIONS, "dimensions of all tensors")
    };
    walk(message, |tag, value| match (tag, value) {
        (1, Value::Bytes(name)) => short(name, MAX_NAME_BYTES, "name"),
        (2, Value::Bytes(dtype)) => short(dtype, MAX_DTYPE_BYTES, "dtype"),
        // Packed: every varint ends with a byte whose highest bit is clear.
        (3, Value::Bytes(shape)) => {
            let mut ends = shape.iter().filter(|byte| **byte < 0x80).take(MAX_RANK + 1);
            ends.try_for_each(|_| dimension())
        }
        (3, Value::Varint) => dimension(),
        _ => Ok(()),
    })
}
