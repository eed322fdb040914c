//! An index segment is refused, or every lookup in it answers from inside the
//! objects that its header names, and written out and read again it is equal.

use std::sync::LazyLock;

use crate::bounded;
use bytes::Bytes;
use tpad_index::{decode_header, decode_segment, encode};
use tpad_manifest::{BlockRecord, Digest, Index, IndexHeader, IndexRef, Segment, SegmentEntry};

/// Headers of a tier and of dense tensors, as the corpus keeps them. What their
/// entries say of blocks and sizes is what their first seeds have.
static HEADERS: LazyLock<[IndexHeader; 2]> = LazyLock::new(|| {
    [&include_bytes!("../headers/tier")[..], &include_bytes!("../headers/dense")[..]].map(|bytes| {
        let (size, prefix) = bytes.split_first_chunk::<4>().expect("it starts with a size");
        let reference = IndexRef {
            digest: Digest::of(prefix),
            header_bytes: prefix.len() as u64,
            bytes: u32::from_le_bytes(*size).into(),
        };
        decode_header(prefix, &reference).expect("a sound header")
    })
});

/// Every range lies inside its object. Returns the image's size.
fn inside(header: &IndexHeader, block: &BlockRecord) -> u64 {
    for range in block.tensors.iter().flat_map(|tensor| &tensor.ranges) {
        let object = header.objects.iter().find(|object| object.path == range.object);
        let end = range.offset.checked_add(range.bytes).expect("ranges do not overflow");
        assert!(end <= object.expect("a known object").bytes, "{range:?} is beyond its object");
    }
    block.layout().expect("an accepted block has a layout").bytes
}

fn lookups(header: &IndexHeader, segment: &Segment, entry: &SegmentEntry) {
    let mut image_bytes = 0;
    for (group, run) in (0..).zip(&segment.groups) {
        for expert in 0..run.experts {
            let block = segment.expert(header, group, expert).expect("counted experts are there");
            image_bytes += inside(header, &block);
        }
        assert_eq!(segment.expert(header, group, run.experts), None, "one more than there are");
        assert_eq!(segment.expert(header, group, u32::MAX), None, "far more than there are");
    }
    let groups = u32::try_from(segment.groups.len()).expect("bounded");
    assert_eq!(segment.expert(header, groups, 0), None, "a group more than there are");
    if header.tier.is_some() {
        image_bytes += segment.router(header).map_or(0, |router| inside(header, &router));
    } else {
        for number in 0..segment.loose.len() {
            let block = segment.dense(header, number).expect("counted blocks are there");
            image_bytes += inside(header, &block);
        }
    }
    assert_eq!(segment.dense(header, segment.loose.len()), None, "one more than there are");
    assert_eq!(image_bytes, entry.image_bytes, "images are as large as the header says");
}

/// Reads an input: whether it is accepted.
///
/// # Panics
/// When it is neither refused nor right.
pub fn index_segment(input: &[u8]) -> bool {
    // No message begins with these bytes: they choose the header that is not
    // the tier's.
    let (which, bytes) = match input {
        [0, bytes @ ..] => (0, bytes),
        [1, bytes @ ..] => (1, bytes),
        bytes => (0, bytes),
    };
    let header = &HEADERS[which];
    let digest = Digest::of(bytes);
    let entry = SegmentEntry { bytes: bytes.len() as u64, digest, ..header.segments[0] };
    let copy = Bytes::from(bytes.to_vec());
    let Ok(segment) = bounded(bytes, || decode_segment(copy, &entry, header)) else { return false };
    lookups(header, &segment, &entry);
    let header = IndexHeader { segments: vec![entry], ..header.clone() };
    let written = encode(&Index { header, segments: vec![segment.clone()] });
    let at = usize::try_from(written.reference.header_bytes).expect("small");
    let (prefix, rest) = written.bytes.split_at(at);
    let header = decode_header(prefix, &written.reference).expect("a header that was written");
    let again = decode_segment(Bytes::from(rest.to_vec()), &header.segments[0], &header);
    assert_eq!(again, Ok(segment), "another segment");
    true
}
