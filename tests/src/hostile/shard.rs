//! Shard headers: safetensors files up to where their data begins.

use super::{Cases, Claim, Kind};

/// A file with this header, its length in front, and the file's size when its
/// data has `data` bytes.
fn shard(header: &[u8], data: u64) -> (Vec<u8>, Claim) {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    let whole = (file.len() as u64).wrapping_add(data);
    (file, Claim::Whole(whole))
}

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// A header that is right, and the size of its file.
#[must_use]
pub fn sound() -> (Vec<u8>, u64) {
    let entries = [entry("a", "BF16", "[2,4]", 0, 16), entry("b", "U8", "[4]", 16, 20)];
    let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, entries.join(","));
    let (file, _) = shard(header.as_bytes(), 20);
    let whole = file.len() as u64 + 20;
    (file, whole)
}

/// A checkpoint of two experts: each in tensors of its own, or stacked in one.
pub(super) fn sound_checkpoint(stacked: bool) -> Vec<u8> {
    let mut end = 0;
    let mut tensor = |name: &str, shape: &[u64]| {
        let begin = end;
        end += 2 * shape.iter().product::<u64>();
        let shape = format!("{shape:?}");
        entry(&format!("model.layers.0.mlp.{name}"), "BF16", &shape, begin, end)
    };
    let mut entries = vec![tensor("gate.weight", &[2, 4])];
    if stacked {
        entries.push(tensor("experts.gate_up_proj", &[2, 4, 6]));
        entries.push(tensor("experts.down_proj", &[2, 3, 4]));
    } else {
        for expert in 0..2 {
            for (part, shape) in [("gate", [3, 4]), ("up", [3, 4]), ("down", [4, 3])] {
                entries.push(tensor(&format!("experts.{expert}.{part}_proj.weight"), &shape));
            }
        }
    }
    shard(format!("{{{}}}", entries.join(",")).as_bytes(), end).0
}

/// Headers that are no JSON, or JSON of another shape: what the refusal says.
const MALFORMED: &[(&str, &[u8], &str)] = &[
    ("object-cut", b"{", "EOF"),
    ("key-cut", b"{\"a", "EOF"),
    ("value-missing", b"{\"a\":", "EOF"),
    ("comma-at-the-end", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}"#, "comma"),
    ("two-documents", br#"{}{}"#, "trailing"),
    ("trailing-letter", b"{}x", "trailing"),
    ("trailing-nul", b"{}\0", "trailing"),
    (
        "name-not-utf8",
        b"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
        "not UTF-8 at byte 2",
    ),
    (
        "unknown-member-not-utf8",
        b"{\"a\":{\"\xff\":1,\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
        "not UTF-8 at byte 7",
    ),
    (
        "name-of-a-lone-surrogate",
        br#"{"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        "line 1",
    ),
    ("name-with-a-newline", b"{\"a\n\":{}}", "control"),
    ("unquoted-name", b"{a:1}", "line 1 column 2"),
    ("single-quotes", b"{'a':1}", "line 1 column 2"),
    ("comment", b"{/* */}", "line 1 column 2"),
    ("nan", b"{\"a\":NaN}", "line 1"),
    ("infinity", b"{\"a\":Infinity}", "line 1"),
    ("tensor-null", br#"{"a":null}"#, "null"),
    ("tensor-true", br#"{"a":true}"#, "boolean"),
    ("tensor-list", br#"{"a":["U8",[1],[0,1]]}"#, "sequence"),
    ("tensor-number", br#"{"a":1}"#, "integer"),
    ("tensor-string", br#"{"a":"U8"}"#, "string"),
    ("tensor-empty", br#"{"a":{}}"#, "dtype"),
    ("dtype-missing", br#"{"a":{"shape":[1],"data_offsets":[0,1]}}"#, "dtype"),
    ("dtype-number", br#"{"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}}"#, "integer `8`"),
    ("dtype-null", br#"{"a":{"dtype":null,"shape":[1],"data_offsets":[0,1]}}"#, "null"),
    (
        "dtype-twice",
        br#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        "dtype appears twice",
    ),
    ("shape-missing", br#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#, "shape"),
    ("shape-number", br#"{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}"#, "shape"),
    ("shape-negative", br#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, "-1"),
    ("shape-fraction", br#"{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#, "1.5"),
    ("shape-nan", br#"{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}"#, "line 1"),
    (
        "shape-of-65-bits",
        br#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#,
        "line 1",
    ),
    ("shape-of-strings", br#"{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}"#, "string"),
    (
        "shape-twice",
        br#"{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}"#,
        "shape appears twice",
    ),
    ("offsets-missing", br#"{"a":{"dtype":"U8","shape":[1]}}"#, "data_offsets"),
    ("offsets-of-one", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#, "length 2"),
    ("offsets-of-three", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#, "line 1"),
    ("offsets-negative", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#, "-1"),
    ("offsets-fraction", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1e0]}}"#, "line 1"),
    (
        "offsets-of-65-bits",
        br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616]}}"#,
        "line 1",
    ),
    ("offsets-object", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":{"0":1}}}"#, "line 1"),
    (
        "offsets-twice",
        br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}}"#,
        "data_offsets appears twice",
    ),
    ("metadata-list", br#"{"__metadata__":[]}"#, "__metadata__"),
    ("metadata-of-numbers", br#"{"__metadata__":{"a":1}}"#, "integer `1`"),
    ("metadata-of-objects", br#"{"__metadata__":{"a":{}}}"#, "map"),
    ("metadata-key-twice", br#"{"__metadata__":{"a":"1","a":"2"}}"#, "name twice"),
    ("metadata-twice", br#"{"__metadata__":{},"__metadata__":{}}"#, "__metadata__ appears twice"),
];

pub(super) fn cases(cases: &mut Cases) {
    let kind = Kind::Shard;
    for (name, header, says) in MALFORMED {
        let (file, whole) = shard(header, 1);
        cases.claimed(kind, name, whole, file, "the header is malformed", says);
    }
    untiled(cases);
    for (name, header) in [
        ("no-header", &b""[..]),
        ("space-first", b" {}"),
        ("list", b"[]"),
        ("null", b"null"),
        ("byte-order-mark", b"\xef\xbb\xbf{}"),
        ("zip", b"PK\x03\x04"),
        ("utf-16", b"\xff\xfe{\0}\0"),
    ] {
        let (file, whole) = shard(header, 0);
        cases.claimed(kind, name, whole, file, "the header", "does not start with '{'");
    }
    let (sound, whole) = sound();
    for length in 0..8u64 {
        let name = format!("cut-to-{length}");
        let end = usize::try_from(length).unwrap_or_default();
        let says = format!("{length} bytes, which is too short");
        cases.claimed(kind, &name, Claim::Whole(length), &sound[..end], "the file", &says);
    }
    for (name, length, says) in [
        ("length-one-more-than-the-file", whole - 7, "the file is truncated"),
        ("length-at-the-cap", 18 << 20, "the file is truncated"),
        ("length-over-the-cap", (18 << 20) + 1, "more than the 18874368 that are accepted"),
        ("length-of-4-gib", 1 << 32, "more than"),
        ("length-of-63-bits", 1 << 63, "more than"),
        ("length-of-64-bits", u64::MAX, "more than"),
        ("length-that-wraps", u64::MAX - 7, "more than"),
    ] {
        let file = [&length.to_le_bytes(), &sound[8..]].concat();
        cases.claimed(kind, name, Claim::Whole(whole), file, "the header claims", says);
    }
    for (name, whole, says) in [
        ("file-one-byte-short", whole - 1, "it is truncated"),
        ("file-without-data", whole - 20, "it is truncated"),
        ("file-one-byte-long", whole + 1, "the rest belongs to no tensor"),
        ("file-endless", u64::MAX, "the rest belongs to no tensor"),
    ] {
        cases.claimed(kind, name, Claim::Whole(whole), sound.clone(), "header and tensors", says);
    }
}

/// Headers whose tensors are not every byte of the file exactly once.
fn untiled(cases: &mut Cases) {
    let a = || entry("a", "U8", "[4]", 0, 4);
    let max = u64::MAX;
    let long = "n".repeat(1025);
    let flat = vec!["1"; 65].join(",");
    let table: Vec<(&str, Vec<String>, u64, &str, &str)> = vec![
        ("name-twice", vec![a(), entry("a", "U8", "[4]", 4, 8)], 8, "\"a\"", "twice"),
        (
            "name-twice-by-escape",
            vec![a(), entry("\\u0061", "U8", "[4]", 4, 8)],
            8,
            "\"a\"",
            "twice",
        ),
        ("tensor-twice", vec![a(), a()], 4, "\"a\"", "twice"),
        ("name-empty", vec![entry("", "U8", "[1]", 0, 1)], 1, "name", "0 bytes"),
        ("name-too-long", vec![entry(&long, "U8", "[1]", 0, 1)], 1, "name", "1025 bytes"),
        ("hole-at-the-start", vec![entry("a", "U8", "[4]", 1, 5)], 5, "\"a\"", "1 bytes before"),
        ("hole-between", vec![a(), entry("b", "U8", "[1]", 6, 7)], 7, "\"b\"", "2 bytes before"),
        (
            "hole-of-63-bits",
            vec![a(), entry("b", "U8", "[1]", 1 << 63, (1 << 63) + 1)],
            5,
            "\"b\"",
            "bytes before",
        ),
        ("overlap-by-one", vec![a(), entry("b", "U8", "[4]", 3, 7)], 7, "\"b\"", "overlap"),
        ("same-bytes", vec![a(), entry("b", "U8", "[4]", 0, 4)], 4, "\"b\"", "overlap"),
        (
            "one-inside-another",
            vec![entry("a", "U8", "[9]", 0, 9), entry("b", "U8", "[2]", 3, 5)],
            9,
            "\"b\"",
            "overlap",
        ),
        ("empty-inside-another", vec![a(), entry("z", "U8", "[0]", 2, 2)], 4, "\"z\"", "overlap"),
        (
            "end-before-begin",
            vec![entry("a", "U8", "[1]", 1, 0)],
            1,
            "\"a\"",
            "end before they begin",
        ),
        ("end-before-begin-far", vec![entry("a", "U8", "[1]", max, 0)], 1, "\"a\"", "end before"),
        ("too-few-bytes", vec![entry("a", "F32", "[2]", 0, 4)], 4, "\"a\"", "takes 8"),
        ("too-many-bytes", vec![entry("a", "F32", "[]", 0, 8)], 8, "\"a\"", "takes 4"),
        ("bytes-of-an-empty-shape", vec![entry("a", "F32", "[0,7]", 0, 4)], 4, "\"a\"", "takes 0"),
        (
            "shape-overflows",
            vec![entry("a", "U8", "[4294967296,4294967296,2]", 0, 4)],
            4,
            "\"a\"",
            "overflows",
        ),
        (
            "shape-overflows-before-a-zero",
            vec![entry("a", "U8", "[4294967296,4294967296,0]", 0, 0)],
            0,
            "\"a\"",
            "overflows",
        ),
        (
            "shape-overflows-128-bits",
            vec![entry("a", "U8", &format!("[{max},{max},{max}]"), 0, 4)],
            4,
            "\"a\"",
            "overflows",
        ),
        (
            "shape-times-type-overflows",
            vec![entry("a", "F64", &format!("[{max}]"), 0, 8)],
            8,
            "\"a\"",
            "overflows",
        ),
        ("half-a-byte", vec![entry("a", "F4", "[3]", 0, 2)], 2, "\"a\"", "whole bytes"),
        (
            "too-many-dimensions",
            vec![entry("a", "U8", &format!("[{flat}]"), 0, 1)],
            1,
            "\"a\"",
            "64 dimensions",
        ),
        ("end-of-64-bits", vec![entry("a", "Q9", "[1]", 0, max)], 1, "\"a\"", "beyond 64 bits"),
        (
            "offsets-that-wrap",
            vec![entry("a", "Q9", "[1]", 0, max - 8), entry("b", "Q9", "[1]", max - 8, max)],
            1,
            "\"b\"",
            "beyond 64 bits",
        ),
        (
            "dtype-of-65-letters",
            vec![entry("a", &"F".repeat(65), "[1]", 0, 1)],
            1,
            "the header is malformed",
            "dtype is longer",
        ),
        ("data-without-tensors", vec![], 1, "header and tensors", "belongs to no tensor"),
    ];
    for (name, entries, data, place, says) in table {
        let header = format!("{{{}}}", entries.join(","));
        let (file, whole) = shard(header.as_bytes(), data);
        cases.claimed(Kind::Shard, name, whole, file, place, says);
    }
}
