//! What fuzzers start from: sound inputs in the form that each target takes.

use super::{header, revision, segment, shard};

/// Seeds by their path below `fuzz/`.
#[cfg_attr(not(test), expect(dead_code, reason = "a test writes and compares them"))]
pub(super) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    // A header as a target reads it: its object's size, then its bytes.
    let sized = |(header, size): (Vec<u8>, u64)| {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        [&size.to_le_bytes()[..], &header].concat()
    };
    let message = |(header, size): (Vec<u8>, u64)| sized((header[12..].to_vec(), size));
    let chosen = |which: u8, segment: Vec<u8>| [&[which][..], &segment].concat();
    vec![
        ("headers/tier", sized(header::sound())),
        ("headers/dense", sized(header::sound_dense())),
        ("corpus/revision/sound", revision::sound().into_bytes()),
        ("corpus/index_header/tier", message(header::sound())),
        ("corpus/index_header/dense", message(header::sound_dense())),
        ("corpus/index_segment/tier", chosen(0, segment::sound().bytes)),
        ("corpus/index_segment/dense", chosen(1, segment::sound_dense())),
        ("corpus/shard_header/sound", shard::sound().0),
        ("corpus/shard_header/experts-each", shard::sound_checkpoint(false)),
        ("corpus/shard_header/experts-stacked", shard::sound_checkpoint(true)),
    ]
}
