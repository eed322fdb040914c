//! What can be wrong with an index header.

use super::Header;
use crate::hostile::proto::Message;

/// A change of a sound header, and the place and words of its refusal.
pub(super) type Change = (&'static str, fn(&mut Header), &'static str, &'static str);

pub(super) const CHANGES: &[Change] = &[
    ("path-leaves-root", |h| h.objects[1].0 = b"../y".to_vec(), "object 1", "component"),
    ("path-leaves-root-deep", |h| h.objects[0].0 = b"a/b/../../../y".to_vec(), "object 0", ".."),
    ("path-absolute", |h| h.objects[0].0 = b"/etc/passwd".to_vec(), "object 0", "relative"),
    ("path-of-a-bucket", |h| h.objects[0].0 = b"s3://b/y".to_vec(), "object 0", "relative"),
    ("path-empty", |h| h.objects[0].0.clear(), "object 0", "1 to 1024 bytes"),
    ("path-dot", |h| h.objects[0].0 = b"./y".to_vec(), "object 0", "component"),
    ("path-double-slash", |h| h.objects[0].0 = b"a//y".to_vec(), "object 0", "empty"),
    ("path-backslash", |h| h.objects[0].0 = b"..\\y".to_vec(), "object 0", "backslash"),
    ("path-nul", |h| h.objects[0].0 = b"y\0".to_vec(), "object 0", "control"),
    ("path-newline", |h| h.objects[0].0 = b"y\n".to_vec(), "object 0", "control"),
    ("path-too-long", |h| h.objects[0].0 = vec![b'y'; 1025], "object 0", "1024 bytes"),
    ("path-not-utf8", |h| h.objects[0].0 = vec![0xff], "index header", "UTF-8"),
    ("tier-not-utf8", |h| h.tier = vec![0xc3, 0x28], "index header", "UTF-8"),
    ("tensor-name-not-utf8", |h| h.templates[0][0].name = vec![0xff], "index header", "UTF-8"),
    ("dtype-not-utf8", |h| h.templates[0][0].dtype = vec![0xff], "index header", "UTF-8"),
    ("template-without-tensors", |h| h.templates[0].clear(), "template 0", "0 tensors"),
    (
        "template-of-1025-tensors",
        |h| {
            h.templates[0] = vec![h.templates[0][0].clone(); 1025];
        },
        "template 0",
        "1025 tensors",
    ),
    ("tensor-name-too-long", |h| h.templates[0][0].name = vec![b'n'; 1025], "template 0", "1025"),
    ("dtype-too-long", |h| h.templates[0][0].dtype = vec![b'F'; 1025], "template 0", "1025"),
    ("dtype-unknown", |h| h.templates[0][0].dtype = b"Q9".to_vec(), "template 0", "Q9"),
    ("dtype-empty", |h| h.templates[0][0].dtype.clear(), "template 0", "no known size"),
    ("shape-overflows", |h| h.templates[0][0].shape = vec![1 << 40; 2], "template 0", "overflows"),
    (
        "shape-overflows-128-bits",
        |h| {
            h.templates[0][0].shape = vec![u64::MAX; 3];
        },
        "template 0",
        "overflows",
    ),
    (
        "shape-of-half-a-byte",
        |h| {
            (h.templates[0][1].dtype, h.templates[0][1].shape) = (b"F4".to_vec(), vec![3]);
        },
        "template 0",
        "whole bytes",
    ),
    (
        "shapes-together-overflow",
        |h| {
            h.templates[0][0].shape = vec![1 << 62];
            h.templates[0][1].shape = vec![1 << 62];
        },
        "template 0",
        "overflow",
    ),
    (
        "shape-of-65-dimensions",
        |h| h.templates[0][0].shape = vec![1; 65],
        "template 0",
        "64 dimensions",
    ),
    (
        "parameters-overflow",
        |h| {
            h.templates[0][0].shape = vec![1 << 60];
            h.templates[0][0].values_per_element = 0xffff_ffff;
        },
        "template 0",
        "overflows",
    ),
    (
        "values-per-element-zero",
        |h| {
            h.templates[0][1].values_per_element = 0;
        },
        "w2.bias",
        "0 values per element",
    ),
    ("projection-missing", |h| h.templates[0][0].projection = 0, "index header", "projection 0"),
    ("projection-unknown", |h| h.templates[0][0].projection = 77, "index header", "projection 77"),
    ("part-missing", |h| h.templates[0][0].part = 0, "index header", "part 0"),
    ("part-unknown", |h| h.templates[0][0].part = 4_000_000_000, "index header", "part 4000000000"),
    ("orientation-unknown", |h| h.templates[0][0].orientation = 3, "index header", "orientation 3"),
    ("gate-up-unknown", |h| h.templates[0][0].gate_up = 9, "index header", "gate_up 9"),
    ("layer-twice", |h| h.segments[1].layer = 3, "segment 1", "layer 3 follows layer 3"),
    ("layers-backwards", |h| h.segments[1].layer = 2, "segment 1", "layer 2 follows layer 3"),
    ("segment-overflows", |h| h.segments[1].bytes = u64::MAX, "segment 1", "overflows"),
    (
        "segment-before-the-header-ends",
        |h| {
            h.segments[0].offset = 4;
        },
        "segment of layer 3",
        "follow each other",
    ),
    ("segments-overlap", |h| h.segments[1].offset -= 1, "segment of layer 5", "follow each other"),
    (
        "segments-with-a-hole",
        |h| {
            h.segments[1].offset += 1;
        },
        "segment of layer 5",
        "follow each other",
    ),
    (
        "segments-swapped",
        |h| {
            let first = h.segments[0].offset;
            h.segments[0].offset = h.segments[1].offset;
            h.segments[1].offset = first;
        },
        "segment of layer 3",
        "follow each other",
    ),
    (
        "segment-of-the-same-bytes",
        |h| {
            h.segments[1].offset = h.segments[0].offset;
        },
        "segment of layer 5",
        "follow each other",
    ),
    (
        "segment-of-two-gibibytes",
        |h| {
            h.segments[1].bytes = 2 << 30;
        },
        "segment of layer 5",
        "at most 1073741824",
    ),
    ("digest-of-31-bytes", |h| h.segments[0].digest.truncate(31), "segment's digest", "31 bytes"),
    ("digest-of-33-bytes", |h| h.segments[0].digest.push(0), "segment's digest", "33 bytes"),
    ("digest-missing", |h| h.segments[0].digest.clear(), "segment's digest", "0 bytes"),
    (
        "message-cut-short-by-its-length",
        |h| h.tail = vec![0x12, 0x40, 0x0a],
        "index header",
        "malformed",
    ),
    ("objects-as-numbers", |h| h.tail = vec![0x10, 0x05], "index header", "wire type"),
    ("tier-as-number", |h| h.tail = vec![0x08, 0x05], "index header", "wire type"),
    (
        "layer-as-bytes",
        |h| h.tail = Message::default().bytes(4, &[0x0a, 0x01, 0x05]).0,
        "index header",
        "wire type",
    ),
];
