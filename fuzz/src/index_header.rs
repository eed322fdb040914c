//! An index header is refused, or it is one: written out and read again it is
//! equal.

use crate::bounded;
use tpad_index::{MAGIC, decode_header, encode};
use tpad_manifest::{Digest, Index, IndexHeader, IndexRef, check_object_path};

/// Reads an object's first bytes as those of an object of `bytes` bytes.
fn read(prefix: &[u8], bytes: u64) -> Option<IndexHeader> {
    let header_bytes = prefix.len() as u64;
    let reference = IndexRef { digest: Digest::of(prefix), header_bytes, bytes };
    bounded(prefix, || decode_header(prefix, &reference)).ok()
}

/// Reads an input: whether it is accepted.
///
/// # Panics
/// When it is neither refused nor right.
pub fn index_header(input: &[u8]) -> bool {
    // The first bytes are the object's size, the rest is an object's start, or
    // only its header's message: the preamble is hard to guess.
    let (size, message) = match input.split_first_chunk::<4>() {
        Some((size, message)) if !input.starts_with(MAGIC) => (*size, message),
        _ => ([0; 4], input),
    };
    let prefix = if message.starts_with(MAGIC) {
        message.to_vec()
    } else {
        let length = u32::try_from(message.len()).expect("inputs are short");
        [&MAGIC[..], &length.to_le_bytes(), message].concat()
    };
    let size = u64::from(u32::from_le_bytes(size));
    let found = read(&prefix, size).map(|header| (header, size));
    let none_behind = prefix.len() as u64;
    let found = found.or_else(|| read(&prefix, none_behind).map(|header| (header, none_behind)));
    let Some((header, size)) = found else { return false };
    for object in &header.objects {
        assert_eq!(check_object_path(&object.path), Ok(()), "it leaves the root");
    }
    let mut end = prefix.len() as u64;
    for entry in &header.segments {
        assert_eq!(header.segment(entry.layer), Some(entry), "layers find their segments");
        assert_eq!(entry.offset, end, "segments follow each other");
        end += entry.bytes;
    }
    assert_eq!(end, size, "the object ends with its last segment");
    // Without segments to place, the header is written as it is. Its places are
    // right again only if the message was written in the usual way.
    let written = encode(&Index { header: header.clone(), segments: Vec::new() }).bytes;
    if written.len() == prefix.len() {
        assert_eq!(read(&written, size), Some(header), "another header");
    }
    true
}
