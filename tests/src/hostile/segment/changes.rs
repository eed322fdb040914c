//! What can be wrong with an index segment.

use super::{LOOSE, Segment};

/// A change of a sound segment, and the place and words of its refusal.
pub(super) type Change = (&'static str, fn(&mut Segment), &'static str, &'static str);

/// The place of what is wrong with the message as such.
pub(super) const WHOLE: &str = "index segment of layer 3";
/// Every change.
pub(super) const CHANGES: &[Change] = &[
    ("another-layer", |s| s.layer = 4, "layer 3", "says it is layer 4"),
    ("no-layer", |s| s.layer = 0, "layer 3", "says it is layer 0"),
    ("group-of-no-template", |s| s.groups[0].1 = 1, "layer 3", "group 0 names template 1"),
    ("group-of-a-far-template", |s| s.groups[0].1 = 0xffff_fffe, "layer 3", "template 4294967294"),
    ("group-of-too-many", |s| s.groups[0].0 = 3, "layer 3", "column of block ids has 96 bytes"),
    ("group-of-too-few", |s| s.groups[0].0 = 1, "layer 3", "column of block ids"),
    ("group-of-four-thousand-million", |s| s.groups[0].0 = 0xffff_ffff, "layer 3", "column of"),
    ("group-missing", |s| s.groups.truncate(1), "layer 3", "column of block ids"),
    ("groups-none", |s| s.groups.clear(), "layer 3", "column of block ids"),
    ("group-added", |s| s.groups.push((1, 0)), "layer 3", "column of block ids"),
    ("all-spelled-out-but-not-there", |s| s.groups[0].1 = LOOSE, "layer 3", "column of objects"),
    ("ids-cut", |s| s.block_ids.truncate(95), "layer 3", "block ids has 95 bytes"),
    ("ids-missing", |s| s.block_ids.clear(), "layer 3", "block ids has 0 bytes"),
    ("ids-and-more", |s| s.block_ids.push(0), "layer 3", "block ids has 97 bytes"),
    ("sources-cut", |s| s.source_experts.truncate(11), "layer 3", "source experts has 11"),
    ("sources-missing", |s| s.source_experts.clear(), "layer 3", "source experts has 0"),
    ("columns-cut", |s| s.router_columns.truncate(8), "layer 3", "router columns has 8"),
    ("columns-and-more", |s| s.router_columns.extend([0; 4]), "layer 3", "router columns has 16"),
    ("objects-cut", |s| s.objects.truncate(15), "layer 3", "objects has 15"),
    ("objects-missing", |s| s.objects.clear(), "layer 3", "objects has 0"),
    ("offsets-cut", |s| s.offsets.truncate(24), "layer 3", "offsets has 24"),
    ("offsets-and-more", |s| s.offsets.extend([0; 8]), "layer 3", "offsets has 40"),
    ("object-unknown", |s| s.objects[4] = 2, "layer 3, group 0, expert 0", "object 2 of 2"),
    (
        "object-far",
        |s| {
            s.objects[8..12].fill(0xff);
        },
        "layer 3, group 0, expert 1",
        "object 4294967295 of 2",
    ),
    ("range-past-the-end", |s| s.offset(0, 4081), "layer 3, group 0, expert 0", "beyond the end"),
    (
        "range-starts-past-the-end",
        |s| {
            s.offset(3, 1 << 40);
        },
        "layer 3, group 0, expert 1",
        "beyond the end of x.safetensors at 4096",
    ),
    (
        "range-overflows",
        |s| {
            s.offset(0, u64::MAX);
        },
        "layer 3, group 0, expert 0",
        "beyond the end",
    ),
    (
        "range-overflows-by-one",
        |s| {
            s.offset(0, u64::MAX - 15);
        },
        "layer 3, group 0, expert 0",
        "beyond the end",
    ),
    ("ranges-overlap", |s| s.offset(1, 15), "layer 3, group 0, expert 0", "overlap at byte 15"),
    ("ranges-of-the-same-bytes", |s| s.offset(3, 24), "layer 3, group 0, expert 1", "overlap"),
    ("loose-missing", |s| s.loose.clear(), "layer 3", "0 blocks are spelled out"),
    (
        "loose-and-more",
        |s| {
            s.loose.push(s.loose[0].clone());
        },
        "layer 3",
        "3 blocks are spelled out",
    ),
    (
        "loose-without-tensors",
        |s| {
            s.loose[0].tensors.clear();
        },
        "layer 3, loose block 0",
        "0 tensors",
    ),
    (
        "loose-of-1025-tensors",
        |s| {
            s.loose[1].tensors = vec![s.loose[1].tensors[0].clone(); 1025];
        },
        "layer 3, loose block 1",
        "1025 tensors",
    ),
    ("loose-id-of-31-bytes", |s| s.loose[0].id.truncate(31), WHOLE, "31 bytes, 32 are expected"),
    ("loose-id-of-33-bytes", |s| s.loose[1].id.push(0), WHOLE, "33 bytes, 32 are expected"),
    ("loose-id-missing", |s| s.loose[0].id.clear(), WHOLE, "0 bytes, 32 are expected"),
    ("loose-tensor-of-ranges-alone", |s| s.loose[0].tensors[0].0 = None, WHOLE, "ranges alone"),
    ("loose-range-past-the-end", |s| s.range()[1] = 4090, "layer 3, loose block 0", "beyond"),
    ("loose-range-overflows", |s| s.range()[1] = u64::MAX, "layer 3, loose block 0", "beyond"),
    ("loose-range-of-no-object", |s| s.range()[0] = 2, "layer 3, loose block 0", "object 2 of 2"),
    ("loose-range-too-short", |s| s.range()[2] = 15, "layer 3, loose block 0", "do not add up"),
    ("loose-range-too-long", |s| s.range()[2] = 17, "layer 3, loose block 0", "do not add up"),
    ("loose-range-endless", |s| s.range()[2] = u64::MAX, "layer 3, loose block 0", "add up"),
    (
        "loose-without-ranges",
        |s| {
            s.loose[0].tensors[0].1.clear();
        },
        "layer 3, loose block 0",
        "do not add up to its 16 bytes",
    ),
    (
        "loose-ranges-wrap-to-the-size",
        |s| {
            s.loose[0].tensors[0].1 = vec![[1, 0, u64::MAX], [1, 0, 17]];
        },
        "layer 3, loose block 0",
        "do not add up",
    ),
    (
        "loose-ranges-overlap",
        |s| {
            s.loose[0].tensors[0].1 = vec![[1, 0, 8], [1, 7, 8]];
        },
        "layer 3, loose block 0",
        "overlap at byte 7",
    ),
    (
        "loose-ranges-twice",
        |s| {
            s.loose[1].tensors[0].1 = vec![[1, 64, 8], [1, 64, 8]];
        },
        "layer 3, loose block 1",
        "overlap at byte 64",
    ),
    (
        "loose-dtype-unknown",
        |s| {
            s.tensor().dtype = b"Q9".to_vec();
        },
        "layer 3, loose block 0",
        "Q9 has no known size",
    ),
    (
        "loose-shape-overflows",
        |s| {
            s.tensor().shape = vec![u64::MAX, 2];
        },
        "layer 3, loose block 0",
        "overflows",
    ),
    (
        "loose-shape-of-65-dimensions",
        |s| s.tensor().shape = vec![1; 65],
        "loose block 0",
        "64 dimensions",
    ),
    ("loose-name-too-long", |s| s.tensor().name = vec![b'n'; 1025], "loose block 0", "1025"),
    ("loose-name-not-utf8", |s| s.tensor().name = vec![0xff], WHOLE, "UTF-8"),
    ("loose-projection-unknown", |s| s.tensor().projection = 70, WHOLE, "projection 70"),
    ("loose-part-missing", |s| s.tensor().part = 0, WHOLE, "part 0"),
    ("loose-values-per-element-zero", |s| s.tensor().values_per_element = 0, WHOLE, "0 values"),
    (
        "loose-expert-of-more-parameters",
        |s| {
            s.tensor().values_per_element = 2;
        },
        "layer 3",
        "40 parameters, the header declares 32",
    ),
    (
        "loose-expert-of-more-bytes",
        |s| {
            s.tensor().shape = vec![2, 68];
            *s.range() = [1, 512, 272];
        },
        "layer 3",
        "1792 image bytes, the header declares 1536",
    ),
    ("router-missing", |s| s.loose.truncate(1), "layer 3", "3 blocks, the header declares 4"),
    ("groups-as-numbers", |s| s.tail = vec![0x10, 0x01], WHOLE, "wire type"),
    ("block-ids-as-numbers", |s| s.tail = vec![0x18, 0x01], WHOLE, "wire type"),
    ("loose-block-cut", |s| s.tail = vec![0x42, 0x05, 0x0a, 0x20], WHOLE, "malformed"),
    ("loose-id-beyond-its-block", |s| s.tail = vec![0x42, 0x02, 0x0a, 0x20], WHOLE, "malformed"),
];
