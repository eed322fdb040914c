//! Revisions that no JSON writer would write.

use super::{replaced, sound};
use crate::hostile::{Cases, Kind};

/// What no JSON writer would write.
pub(super) fn cases(cases: &mut Cases) {
    let sound = sound();
    let cut = |at: usize| sound[..at].to_owned();
    let nested = |n: usize| format!(r#"{{"x":{}{}}}"#, "[".repeat(n), "]".repeat(n));
    let files = |name: &str| replaced("\"config.json\": {", &format!("{name}: {{"));
    let table: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        ("empty", Vec::new(), "document", "EOF"),
        ("spaces", b"  \n ".to_vec(), "document", "EOF"),
        ("null", b"null".to_vec(), "document", "null, an object is expected"),
        ("list", b"[]".to_vec(), "document", "a list, an object"),
        ("number", b"1".to_vec(), "document", "an integer, an object"),
        ("string", b"\"1.1\"".to_vec(), "document", "a string, an object"),
        ("nothing-in-it", b"{}".to_vec(), "/format_version", "is this a manifest?"),
        ("version-alone", br#"{"format_version":"1.1"}"#.to_vec(), "/tiers", "missing"),
        ("config-json", br#"{"architectures":["X"]}"#.to_vec(), "/format_version", "missing"),
        ("nan", replaced("\"scale\": 1.0", "\"scale\": NaN").into(), "document", "line"),
        ("infinity", replaced("\"scale\": 1.0", "\"scale\": Infinity").into(), "document", "line"),
        (
            "minus-infinity",
            replaced("\"scale\": 1.0", "\"scale\": -Infinity").into(),
            "document",
            "line",
        ),
        (
            "float-overflows",
            replaced("\"scale\": 1.0", "\"scale\": 1e999").into(),
            "document",
            "out of range",
        ),
        (
            "number-with-plus",
            replaced("\"revision\": 1", "\"revision\": +1").into(),
            "document",
            "line",
        ),
        (
            "number-with-zero",
            replaced("\"revision\": 1", "\"revision\": 01").into(),
            "document",
            "line",
        ),
        (
            "number-in-hex",
            replaced("\"revision\": 1", "\"revision\": 0x1").into(),
            "document",
            "line",
        ),
        ("number-cut", replaced("\"revision\": 1", "\"revision\": 1.").into(), "document", "line"),
        (
            "integer-of-400-digits",
            replaced("\"revision\": 1", &format!("\"revision\": {}", "9".repeat(400))).into(),
            "document",
            "out of range",
        ),
        ("comment", replaced("{", "{ // a manifest\n").into(), "document", "line"),
        (
            "comma-at-the-end",
            replaced("\"requires\": []", "\"requires\": [],,").into(),
            "document",
            "line",
        ),
        ("single-quotes", replaced("\"hostile\"", "'hostile'").into(), "document", "line"),
        ("key-without-quotes", replaced("\"model\"", "model").into(), "document", "line"),
        ("control-character", replaced("hostile", "hos\u{1}tile").into(), "document", "control"),
        ("lone-surrogate", replaced("hostile", "\\ud800").into(), "document", "line"),
        ("escape-unknown", replaced("hostile", "\\x41").into(), "document", "escape"),
        ("not-utf8", replace_bytes(&sound, b"hostile", b"host\xffle"), "document", "line"),
        ("utf8-overlong", replace_bytes(&sound, b"hostile", b"host\xc0\xafe"), "document", "line"),
        ("utf-16", sound.encode_utf16().flat_map(u16::to_le_bytes).collect(), "document", "line 1"),
        ("byte-order-mark", format!("\u{feff}{sound}").into(), "document", "line 1 column 1"),
        ("gzip", b"\x1f\x8b\x08\x00\x00\x00\x00\x00".to_vec(), "document", "line 1"),
        ("trailing-letter", format!("{sound}x").into(), "document", "trailing"),
        ("trailing-nul", format!("{sound}\0").into(), "document", "trailing"),
        ("two-documents", format!("{sound}{sound}").into(), "document", "trailing"),
        ("cut-in-half", cut(sound.len() / 2).into(), "document", "EOF"),
        ("cut-by-one", cut(sound.len() - 1).into(), "document", "EOF"),
        (
            "cut-in-a-string",
            cut(sound.find("hostile").unwrap_or_default() + 3).into(),
            "document",
            "EOF",
        ),
        ("nested-128", nested(128).into(), "document", "recursion"),
        ("nested-5000", nested(5000).into(), "document", "recursion"),
        ("nested-objects", "{\"x\":".repeat(2000).into(), "document", "recursion"),
        (
            "key-twice",
            replaced("\"model\": \"hostile\"", "\"model\": \"a\", \"model\": \"b\"").into(),
            "/model",
            "more than once",
        ),
        (
            "key-twice-by-escape",
            replaced("\"model\": \"hostile\"", "\"model\": \"a\", \"mode\\u006c\": \"b\"").into(),
            "/model",
            "more than once",
        ),
        (
            "tiers-twice",
            replaced("\"requires\": []", "\"tiers\": []").into(),
            "/tiers",
            "more than once",
        ),
        (
            "key-twice-where-unknown",
            replaced("\"requires\": []", "\"x\": [{\"y\": 1, \"y\": 2}]").into(),
            "/x/0/y",
            "more than once",
        ),
        (
            "file-name-leaves-root",
            files("\"../config.json\"").into(),
            "/files/..~1config.json",
            "the name",
        ),
        ("file-name-absolute", files("\"/etc/passwd\"").into(), "/files/~1etc~1passwd", "relative"),
        ("file-name-empty", files("\"\"").into(), "/files/", "1 to 1024 bytes"),
        ("file-name-nul", files("\"a\\u0000\"").into(), "/files/a", "control"),
    ];
    for (name, bytes, place, says) in table {
        cases.add(Kind::Revision, &format!("spelled-{name}.json"), bytes, place, says);
    }
}

fn replace_bytes(text: &str, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = text.as_bytes().windows(from.len()).position(|window| window == from);
    let at = at.unwrap_or_default();
    [&text.as_bytes()[..at], to, &text.as_bytes()[at + from.len()..]].concat()
}
