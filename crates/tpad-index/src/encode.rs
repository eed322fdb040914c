//! From an index in memory to its object.

use prost::Message;
use tpad_manifest::{Digest, Index, IndexRef};

use crate::{MAGIC, PREAMBLE_BYTES, convert, wire};

/// An index object and the reference that a manifest keeps to it.
#[derive(Clone, Debug)]
pub struct EncodedIndex {
    /// What the manifest says of it.
    pub reference: IndexRef,
    /// The object.
    pub bytes: Vec<u8>,
}

/// Encodes an index; the segments' places and digests are filled in.
#[must_use]
pub fn encode(index: &Index) -> EncodedIndex {
    let segments: Vec<Vec<u8>> =
        index.segments.iter().map(|segment| convert::segment(segment).encode_to_vec()).collect();
    let mut header = convert::header(&index.header);
    // A place is written in as many bytes as it takes, so moving segments back
    // by the header's length can lengthen the header: repeat until it holds.
    let mut start = 0;
    let header_bytes = loop {
        place(&mut header.segments, &segments, start);
        let bytes = header.encode_to_vec();
        let end = (PREAMBLE_BYTES + bytes.len()) as u64;
        if end == start {
            break bytes;
        }
        start = end;
    };
    let mut bytes = Vec::with_capacity(
        PREAMBLE_BYTES + header_bytes.len() + segments.iter().map(Vec::len).sum::<usize>(),
    );
    bytes.extend_from_slice(MAGIC);
    let length = u32::try_from(header_bytes.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&header_bytes);
    let digest = Digest::of(&bytes);
    let header_bytes = bytes.len() as u64;
    for segment in &segments {
        bytes.extend_from_slice(segment);
    }
    let reference = IndexRef { digest, header_bytes, bytes: bytes.len() as u64 };
    EncodedIndex { reference, bytes }
}

fn place(entries: &mut [wire::SegmentEntry], segments: &[Vec<u8>], start: u64) {
    let mut offset = start;
    for (entry, segment) in entries.iter_mut().zip(segments) {
        entry.offset = offset;
        entry.bytes = segment.len() as u64;
        entry.digest = Digest::of(segment).as_bytes().to_vec().into();
        offset += entry.bytes;
    }
}
