//! Hostile and odd safetensors headers, each with what the reader makes of it.

use std::sync::Arc;

use tpad_publish::{HeaderFault, MAX_NAME_BYTES, MAX_RANK, parse_header};

fn parse(header: impl AsRef<[u8]>, data_bytes: u64) -> Result<Vec<String>, HeaderFault> {
    let header = header.as_ref();
    let file_bytes = 8 + header.len() as u64 + data_bytes;
    let object = Arc::from("model.safetensors");
    let tensors = parse_header(&object, header, file_bytes)?;
    Ok(tensors.iter().map(|tensor| tensor.name.to_string()).collect())
}

fn entry(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// Headers that JSON or the format's shape rules out.
#[test]
fn malformed_headers_are_refused() {
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500));
    let table: &[(&str, &[u8])] = &[
        ("truncated object", b"{"),
        ("truncated key", b"{\"a"),
        ("missing value", b"{\"a\":"),
        ("trailing comma", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},}"#),
        ("second document", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}{}"#),
        ("trailing bytes", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}x"#),
        ("trailing NUL", b"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}\0"),
        ("invalid UTF-8", b"{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}"),
        ("lone surrogate", br#"{"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#),
        ("control character", b"{\"a\n\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}"),
        ("tensor is null", br#"{"a":null}"#),
        ("tensor is a list", br#"{"a":["U8",[1],[0,1]]}"#),
        ("tensor is a number", br#"{"a":1}"#),
        ("no dtype", br#"{"a":{"shape":[1],"data_offsets":[0,1]}}"#),
        ("no shape", br#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#),
        ("no offsets", br#"{"a":{"dtype":"U8","shape":[1]}}"#),
        ("dtype is a number", br#"{"a":{"dtype":8,"shape":[1],"data_offsets":[0,1]}}"#),
        ("shape is a number", br#"{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}"#),
        ("negative dimension", br#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#),
        ("fractional dimension", br#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#),
        ("dimension in quotes", br#"{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}"#),
        ("one offset", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#),
        ("three offsets", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#),
        ("negative offset", br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#),
        (
            "offset beyond 64 bits",
            br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,18446744073709551616]}}"#,
        ),
        ("dtype twice", br#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#),
        ("shape twice", br#"{"a":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}}"#),
        (
            "offsets twice",
            br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"data_offsets":[0,1]}}"#,
        ),
        ("metadata twice", br#"{"__metadata__":{},"__metadata__":{}}"#),
        ("a metadata key twice", br#"{"__metadata__":{"a":"1","a":"2"}}"#),
        ("metadata is a string", br#"{"__metadata__":"pt"}"#),
        ("metadata holds a number", br#"{"__metadata__":{"a":1}}"#),
        ("metadata posing as a tensor", br#"{"__metadata__":{"shape":[1]}}"#),
        ("deep nesting", deep.as_bytes()),
    ];
    for (what, header) in table {
        match parse(header, 1) {
            Err(HeaderFault::Malformed(message)) => assert!(!message.is_empty(), "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}

/// Well-formed JSON that does not describe every byte exactly once.
#[test]
fn headers_that_lie_are_refused() {
    let max = u64::MAX;
    let a = entry("a", "U8", "[4]", 0, 4);
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    let flat = vec!["1"; MAX_RANK + 1].join(",");
    let table: Vec<(&str, Vec<String>, u64, &str)> = vec![
        ("duplicate name", vec![a.clone(), entry("a", "U8", "[4]", 4, 8)], 8, "twice"),
        (
            "duplicate name, one of them escaped",
            vec![a.clone(), entry("\\u0061", "U8", "[4]", 4, 8)],
            8,
            "twice",
        ),
        ("duplicate name, equal entries", vec![a.clone(), a.clone()], 4, "twice"),
        ("empty name", vec![entry("", "U8", "[1]", 0, 1)], 1, "name has 0 bytes"),
        ("long name", vec![entry(&long, "U8", "[1]", 0, 1)], 1, "name has 1025 bytes"),
        ("hole at the start", vec![entry("a", "U8", "[4]", 1, 5)], 5, "1 bytes before"),
        (
            "hole between",
            vec![a.clone(), entry("b", "U8", "[1]", 6, 7)],
            7,
            "2 bytes before tensor \"b\"",
        ),
        ("bytes after the last tensor", vec![a.clone()], 5, "belongs to no tensor"),
        ("data without tensors", vec![], 1, "belongs to no tensor"),
        ("overlap by one", vec![a.clone(), entry("b", "U8", "[4]", 3, 7)], 7, "overlap"),
        ("the same bytes twice", vec![a.clone(), entry("b", "U8", "[4]", 0, 4)], 4, "overlap"),
        (
            "one tensor inside another",
            vec![entry("a", "U8", "[9]", 0, 9), entry("b", "U8", "[2]", 3, 5)],
            9,
            "overlap",
        ),
        (
            "an empty tensor inside another",
            vec![a.clone(), entry("z", "U8", "[0]", 2, 2)],
            4,
            "overlap",
        ),
        ("end before begin", vec![entry("a", "U8", "[1]", 1, 0)], 1, "end before they begin"),
        ("end before begin, far", vec![entry("a", "U8", "[1]", max, 0)], 1, "end before"),
        ("too few bytes for the shape", vec![entry("a", "F32", "[2]", 0, 4)], 4, "takes 8"),
        ("too many bytes for the shape", vec![entry("a", "F32", "[]", 0, 8)], 8, "takes 4"),
        ("bytes for an empty shape", vec![entry("a", "F32", "[0, 7]", 0, 4)], 4, "takes 0"),
        (
            "shape overflows",
            vec![entry("a", "U8", "[4294967296,4294967296,2]", 0, 4)],
            4,
            "overflows",
        ),
        (
            "shape overflows 128 bits",
            vec![entry("a", "U8", &format!("[{max},{max},{max}]"), 0, 4)],
            4,
            "overflows",
        ),
        ("half a byte", vec![entry("a", "F4", "[3]", 0, 2)], 2, "whole bytes"),
        (
            "too many dimensions",
            vec![entry("a", "U8", &format!("[{flat}]"), 0, 1)],
            1,
            "dimensions",
        ),
        ("truncated file", vec![a.clone()], 3, "truncated"),
        (
            "the end of the address space",
            vec![entry("a", "Q9", "[1]", 0, max)],
            1,
            "beyond 64 bits",
        ),
        (
            "offsets that would wrap",
            vec![entry("a", "Q9", "[1]", 0, max - 8), entry("b", "Q9", "[1]", max - 8, max)],
            1,
            "beyond 64 bits",
        ),
    ];
    for (what, entries, data_bytes, expected) in table {
        let header = format!("{{{}}}", entries.join(","));
        let fault = parse(&header, data_bytes).expect_err(what).to_string();
        assert!(fault.contains(expected), "{what}: {fault}");
    }
}

#[test]
fn what_is_no_object_is_refused_before_it_is_read() {
    for header in ["", " {}", "[]", "\u{feff}{}", "null", "PK\u{3}\u{4}"] {
        assert_eq!(parse(header, 0), Err(HeaderFault::NotAnObject), "{header:?}");
    }
}

#[test]
fn headers_above_the_cap_are_refused() {
    let header = format!("{{{}}}", " ".repeat(18 << 20));
    assert!(matches!(parse(header, 0), Err(HeaderFault::TooLarge(_))));
}

/// Odd, but legal: each is read as what it says.
#[test]
fn odd_headers_are_read() {
    let table: Vec<(&str, String, u64, &[&str])> = vec![
        ("nothing", "{}".to_owned(), 0, &[]),
        ("padding", "{}        ".to_owned(), 0, &[]),
        ("metadata alone", r#"{"__metadata__":{"format":"pt"}}"#.to_owned(), 0, &[]),
        ("a path for a name", format!("{{{}}}", entry("../x", "U8", "[1]", 0, 1)), 1, &["../x"]),
        ("a scalar", format!("{{{}}}", entry("a", "F64", "[]", 0, 8)), 8, &["a"]),
        ("an empty tensor", format!("{{{}}}", entry("a", "F32", "[0]", 0, 0)), 0, &["a"]),
        (
            "empty tensors at both ends",
            format!(
                "{{{},{},{}}}",
                entry("z", "U8", "[0]", 4, 4),
                entry("b", "U8", "[4]", 0, 4),
                entry("a", "U8", "[0]", 0, 0)
            ),
            4,
            &["a", "b", "z"],
        ),
        (
            "an order of its own",
            format!("{{{},{}}}", entry("b", "U8", "[4]", 4, 8), entry("a", "U8", "[4]", 0, 4)),
            8,
            &["a", "b"],
        ),
        ("an unknown type", format!("{{{}}}", entry("a", "F5", "[3]", 0, 7)), 7, &["a"]),
        (
            "a field from the future",
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"strides":[1]}}"#.to_owned(),
            1,
            &["a"],
        ),
        (
            "deep nesting in what is ignored",
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{}{}}}}}"#,
                "[".repeat(100_000),
                "]".repeat(100_000)
            ),
            1,
            &["a"],
        ),
        ("packed halves of bytes", format!("{{{}}}", entry("a", "F4", "[2,3]", 0, 3)), 3, &["a"]),
        (
            "as many dimensions as NumPy",
            format!("{{{}}}", entry("a", "U8", &format!("{:?}", [1; MAX_RANK]), 0, 1)),
            1,
            &["a"],
        ),
        ("escapes", format!("{{{}}}", entry("\\u0061\\/", "U8", "[1]", 0, 1)), 1, &["a/"]),
    ];
    for (what, header, data_bytes, expected) in table {
        let names = parse(&header, data_bytes);
        assert_eq!(
            names.as_deref(),
            Ok(&*expected.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()),
            "{what}"
        );
    }
}

#[test]
fn offsets_are_counted_from_the_start_of_the_file() {
    let header =
        format!("{{{},{}}}", entry("a", "U8", "[4]", 0, 4), entry("b", "BF16", "[2,1]", 4, 8));
    let object = Arc::from("x.safetensors");
    let file_bytes = 8 + header.len() as u64 + 8;
    let tensors = parse_header(&object, header.as_bytes(), file_bytes).expect("legal");
    let data = 8 + header.len() as u64;
    assert_eq!((tensors[0].offset, tensors[0].bytes), (data, 4));
    assert_eq!((tensors[1].offset, tensors[1].bytes), (data + 4, 4));
    assert_eq!(tensors[1].shape, [2, 1]);
}
