//! Shard headers that hurt by their size.

use super::{MIB, keyed, list};
use crate::hostile::{Cases, Claim, Kind};

pub(super) fn cases(cases: &mut Cases) {
    let mut add = |name: &str, header: &str, data: u64, place: &str, says: &str| {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        let whole = Claim::Whole((file.len() as u64).saturating_add(data));
        cases.claimed(Kind::Shard, &format!("large-{name}"), whole, file, place, says);
    };
    let entry = |name: &str, shape: &str, begin: usize, end: usize| {
        format!(r#""{name}":{{"dtype":"U8","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let whole = |entries: &[String]| format!("{{{}}}", entries.join(","));
    let within = 18 * MIB - 256;
    let tensors: Vec<String> =
        (0..within / 72).map(|n| entry(&format!("{n:x}"), "[1]", n, n + 1)).collect();
    add(
        "tensors-and-a-byte",
        &whole(&tensors),
        tensors.len() as u64 + 1,
        "header and tensors",
        "belongs to no tensor",
    );
    let mut twice = tensors.clone();
    twice.push(entry("0", "[1]", tensors.len(), tensors.len() + 1));
    add("tensors-and-one-twice", &whole(&twice), twice.len() as u64, "\"0\"", "twice");
    let same: Vec<String> = (0..within / 72).map(|n| entry("a", "[1]", n, n + 1)).collect();
    add("one-name", &whole(&same), same.len() as u64, "\"a\"", "twice");
    let empty: Vec<String> =
        (0..within / 72).map(|n| entry(&format!("{n:x}"), "[0]", 1, 1)).collect();
    add("empty-tensors-behind-a-hole", &whole(&empty), 1, "before tensor", "1 bytes");
    let long = "n".repeat(within);
    add("name", &whole(&[entry(&long, "[1]", 0, 1)]), 1, "name", "bytes: 1 to 1024");
    let escapes = "\\u006e".repeat(within / 6 - 16);
    add("name-of-escapes", &whole(&[entry(&escapes, "[1]", 0, 1)]), 1, "name", "bytes: 1 to 1024");
    add("shape", &whole(&[entry("a", &list("1", within / 2), 0, 1)]), 1, "\"a\"", "64 dimensions");
    add(
        "dtype",
        &format!(r#"{{"a":{{"dtype":"{long}"}}}}"#),
        1,
        "the header is malformed",
        "line 1",
    );
    let dimensions = format!("[{}]", ["0"; 64].join(","));
    let wide: Vec<String> =
        (0..within / 192).map(|n| entry(&format!("{n:x}"), &dimensions, 0, 0)).collect();
    add("dimensions", &whole(&wide), 0, "\"4000\"", "1048576 dimensions together");
    let cubes: Vec<String> =
        (0..within / 64).map(|n| entry(&format!("{n:x}"), "[0,0,0]", 0, 0)).collect();
    add("cubes-and-a-byte", &whole(&cubes), 1, "header and tensors", "belongs to no tensor");
    let metadata = |members: &str| format!("{{\"__metadata__\":{members}}}");
    add(
        "metadata",
        &metadata(&keyed("\"\"", 400_000)),
        1,
        "the header is malformed",
        "more than 65536 members",
    );
    let same = format!("{{{}}}", ["\"\":\"\""].repeat(within / 6 - 8).join(","));
    add("metadata-of-one-name", &metadata(&same), 1, "the header is malformed", "65536 members");
    let breaks = format!("{{\"a\":\"{}\"}}", "\\n".repeat(within / 2 - 32));
    let place = "header and tensors";
    add("metadata-of-escapes", &metadata(&breaks), 1, place, "belongs to no tensor");
    let braces = format!("{{\"a\":\"{}\"}}", "{".repeat(within - 64));
    add("metadata-of-braces", &metadata(&braces), 1, place, "belongs to no tensor");
    let brackets = "[".repeat(within / 2);
    add("nested", &format!("{{\"a\":{{\"x\":{brackets}"), 1, "the header is malformed", "EOF");
    add(
        "nested-objects",
        &format!("{{\"a\":{{\"x\":{}", "{\"\":".repeat(within / 4)),
        1,
        "the header is malformed",
        "EOF",
    );
    add(
        "nested-shape",
        &format!("{{\"a\":{{\"shape\":{brackets}"),
        1,
        "the header is malformed",
        "line 1",
    );
    add("spaces", &format!("{{{}", " ".repeat(within)), 1, "the header is malformed", "EOF");
    add(
        "digits",
        &format!("{{\"a\":{{\"shape\":[{}]}}}}", "9".repeat(within)),
        1,
        "the header is malformed",
        "line 1",
    );
}
