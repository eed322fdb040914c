//! Cases that hurt by their size: small to describe, long to read.

mod shards;

use super::proto::{Message, varint};
use super::{Cases, Kind, header};

const MIB: usize = 1 << 20;

pub(super) fn cases(cases: &mut Cases) {
    revisions(cases);
    headers(cases);
    segments(cases);
    shards::cases(cases);
}

/// A list in which `item` stands as often as fits in `bytes`.
fn list(item: &str, bytes: usize) -> String {
    let count = bytes / (item.len() + 1);
    let mut list = String::with_capacity(bytes + 2);
    list.push('[');
    for n in 0..count {
        list.push_str(if n == 0 { "" } else { "," });
        list.push_str(item);
    }
    list.push(']');
    list
}

/// An object of numbered keys that all have one value.
fn keyed(value: &str, count: usize) -> String {
    let members: Vec<String> = (0..count).map(|n| format!("\"{n:x}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

fn revisions(cases: &mut Cases) {
    let kind = Kind::Revision;
    let mut add = |name: &str, members: &str, place: &str, says: &str| {
        let document = format!("{{\"format_version\":\"1.1\",\"tiers\":[],{members}}}");
        cases.add(kind, &format!("large-{name}.json"), document, place, says);
    };
    let most = 15 * MIB;
    let text = "x".repeat(4 * MIB);
    let tier = |more: &str| {
        format!("{{\"id\":1,\"parameter_budget\":1,\"groups\":[{{\"experts\":1}}]{more}}}")
    };
    add("too-long", &format!("\"x\":\"{}\"", "x".repeat(16 * MIB)), "document", "at most 16777216");
    add("unknown-field", &format!("\"x\":{}", list("0", most)), "document", "values");
    add("unknown-fields", &format!("\"x\":{}", keyed("0", 400_000)), "document", "values");
    add("unknown-nested", &format!("\"x\":{}", list("[[[]]]", most)), "document", "values");
    add("layers", &format!("\"layers\":{}", list("0", most)), "document", "values");
    add("default-set", &format!("\"default_tier_set\":{}", list("1", most)), "document", "values");
    add(
        "default-set-bounded",
        &format!("\"default_tier_set\":{}", list("1", MIB / 4)),
        "/default_tier_set",
        "at most 1024",
    );
    add(
        "requires",
        &format!("\"requires\":{}", list("\"\"", MIB / 4)),
        "/requires",
        "does not know",
    );
    add("requires-long", &format!("\"requires\":[\"{text}\"]"), "/requires/0", "bytes, at most");
    add(
        "wrong-layers",
        &format!("\"layers\":{}", list("0", MIB / 4)),
        "/layers/0",
        "an object is expected",
    );
    add(
        "bare-layers",
        &format!("\"layers\":{}", list("{}", MIB / 4)),
        "/layers/0/layer",
        "missing",
    );
    add("files", &format!("\"files\":{}", keyed("{}", 50_000)), "/files", "at most 4096");
    add("file-name", &format!("\"files\":{{\"{text}\":{{}}}}"), "/files/xxx", "1 to 1024 bytes");
    add(
        "keys-twice",
        &format!("\"x\":{}", list("{\"y\":0,\"y\":0}", MIB / 2)),
        "/x/0/y",
        "more than once",
    );
    let deep = format!("\"{}\":{}", "k".repeat(MIB), list("{\"y\":0,\"y\":0}", MIB / 2));
    add("keys-twice-below-a-long-key", &deep, "/kkk", "more than once");
    let nested = (0..100)
        .fold("0".to_owned(), |inner, _| format!("{{\"{}\":{inner}}}", "k".repeat(100_000)));
    add(
        "long-keys-nested",
        &format!("\"x\":{nested},\"layers\":0"),
        "/layers",
        "a list is expected",
    );
    add("model", &format!("\"model\":\"{}\"", "x".repeat(most)), "/model", "bytes, at most");
    add("created-at", &format!("\"created_at\":\"{text}\""), "/created_at", "bytes, at most");
    add("parent", &format!("\"parent\":\"{text}\""), "/parent", "bytes, at most");
    add("objects-base", &format!("\"objects_base\":\"{text}\""), "/objects_base", "bytes, at most");
    let sets = |name: &str, set: &str, count: usize| {
        let members: Vec<String> = (0..count).map(|n| format!("\"{n}{name}\":{set}")).collect();
        format!("\"tier_sets\":{{{}}}", members.join(","))
    };
    add("tier-sets", &sets("", "[]", 50_000), "/tier_sets", "at most 1024");
    let (name, place) = ("s".repeat(120), "/tier_sets/0sss");
    add("tier-sets-of-unknown", &sets(&name, &list("1", 500), 1024), place, "not a tier");
    let id = format!("\"{}\"", "i".repeat(40));
    add("tier-sets-of-names", &sets(&name, &list(&id, 250 * 43), 1024), place, "not a tier");
    let members = list("{\"layer\":0}", 131_000 * 12);
    add("layers-of-one-member", &format!("\"layers\":{members}"), "/layers", "at most 65536");
    let mut tiers = |name: &str, tiers: &str, place: &str, says: &str| {
        let document = format!("{{\"format_version\":\"1.1\",\"tiers\":{tiers}}}");
        cases.add(kind, &format!("large-{name}.json"), document, place, says);
    };
    let one = |more: &str| format!("[{}]", tier(more));
    tiers("tiers", &list(&tier(""), MIB), "/tiers", "at most 1024");
    tiers("tiers-of-nothing", &list("{}", MIB / 4), "/tiers/0/id", "missing");
    tiers(
        "groups",
        &one(&format!(",\"groups\":{}", list("{\"experts\":1}", MIB))),
        "/tiers/0/groups",
        "more than once",
    );
    let groups = list("{\"experts\":1}", MIB);
    tiers(
        "groups-alone",
        &format!("[{{\"id\":1,\"parameter_budget\":1,\"groups\":{groups}}}]"),
        "/tiers/0/groups",
        "at most 65536",
    );
    let groups = list("{\"experts\":1}", 131_000 * 14);
    tiers(
        "groups-of-one-member",
        &format!("[{{\"id\":1,\"parameter_budget\":1,\"groups\":{groups}}}]"),
        "/tiers/0/groups",
        "at most 65536",
    );
    tiers("tier-id", &format!("[{{\"id\":\"{text}\"}}]"), "/tiers/0/id", "bytes");
    tiers(
        "placement",
        &one(&format!(",\"placement\":\"{text}\"")),
        "/tiers/0/placement",
        "bytes, at most",
    );
    tiers(
        "quantization",
        &one(&format!(",\"compatibility\":{{\"quantization\":\"{text}\"}}")),
        "/tiers/0/compatibility/quantization",
        "bytes, at most",
    );
    tiers(
        "dtype",
        &one(&format!(",\"compatibility\":{{\"dtypes\":[\"{text}\"]}}")),
        "/tiers/0/compatibility/dtypes/0",
        "bytes, at most",
    );
    tiers(
        "tier-requires",
        &one(&format!(",\"compatibility\":{{\"requires\":[\"{text}\"]}}")),
        "/tiers/0/compatibility/requires/0",
        "bytes, at most",
    );
}

/// A message of `count` times the same field.
fn repeated(field: u64, inner: &[u8], count: usize) -> Vec<u8> {
    Message::default().bytes(field, inner).0.repeat(count)
}

fn headers(cases: &mut Cases) {
    let mut add = |name: &str, message: &[u8], place: &str, says: &str| {
        cases.add(Kind::Header, &format!("large-{name}"), header::preamble(message), place, says);
    };
    let within = 4 * MIB - 64;
    let tensor = |field: u64, value: &[u8]| {
        let tensor = Message::default().bytes(field, value);
        let template = Message::default().message(1, &tensor);
        Message::default().message(3, &template).0
    };
    add("objects", &repeated(2, &[], within / 2), "index header", "objects");
    add("templates", &repeated(3, &[], within / 2), "index header", "templates");
    add("segments", &repeated(4, &[], within / 2), "index header", "segments");
    let tensors = Message::default().bytes(3, &repeated(1, &[], within / 2 - 8)).0;
    add("tensors", &tensors, "template 0", "tensors");
    add("shape", &tensor(3, &vec![0xff; within - 32]), "index header", "varint");
    add("shape-of-ones", &tensor(3, &vec![1; within - 32]), "template 0", "dimensions");
    let mut unpacked = Vec::with_capacity(within);
    while unpacked.len() < within - 64 {
        varint(&mut unpacked, 3 << 3);
        varint(&mut unpacked, 1);
    }
    let template = Message::default().bytes(1, &unpacked);
    add("shape-unpacked", &Message::default().message(3, &template).0, "template 0", "dimensions");
    add("name", &tensor(1, &vec![b'n'; within - 32]), "template 0", "name");
    add("dtype", &tensor(2, &vec![b'F'; within - 32]), "template 0", "dtype");
    let object = Message::default().bytes(1, &[1; 59]);
    add(
        "objects-of-controls",
        &Message::default().message(2, &object).0.repeat(65_536),
        "object 0",
        "control",
    );
    let wide = Message::default()
        .bytes(1, b"n")
        .bytes(2, b"U8")
        .bytes(3, &[1; 60])
        .raw(&[0x20, 1, 0x28, 1, 0x40, 1]);
    let template = Message::default().message(1, &wide).0.repeat(1024);
    let templates = Message::default().bytes(3, &template).0;
    add(
        "templates-of-dimensions",
        &templates.repeat(within / templates.len()),
        "template",
        "dimensions",
    );
    let path = Message::default().bytes(1, &vec![b'p'; within - 32]);
    add("path", &Message::default().message(2, &path).0, "object 0", "1024 bytes");
    add("tier", &Message::default().bytes(1, &vec![b't'; within - 32]).0, "index header", "tier");
    add(
        "unknown-field",
        &Message::default().bytes(15, &vec![0; 4 * MIB]).0,
        "index header",
        "at most 4194304",
    );
}

fn segments(cases: &mut Cases) {
    let mut add = |name: &str, bytes: &[u8], says: &str| {
        cases.add(Kind::Segment, &format!("large-{name}"), bytes, "layer 3", says);
    };
    let id = Message::default().bytes(1, &[9; 32]);
    let block = |inner: &[u8]| Message::default().bytes(8, &[&id.0, inner].concat()).0;
    add("groups", &repeated(2, &[], 4 * MIB), "groups");
    add("loose", &repeated(8, &[], 4 * MIB), "blocks");
    add("loose-with-ids", &repeated(8, &id.0, MIB / 4), "blocks");
    add("tensors", &block(&repeated(2, &[], 4 * MIB)), "tensors");
    let ranges = repeated(2, &[], 4 * MIB);
    add("ranges", &block(&Message::default().bytes(2, &ranges).0), "ranges");
    let tensor = |field: u64, value: &[u8]| {
        let tensor = Message::default().bytes(field, value);
        block(&Message::default().message(2, &Message::default().message(1, &tensor)).0)
    };
    add("shape", &tensor(3, &vec![1; 8 * MIB]), "dimensions");
    add("name", &tensor(1, &vec![b'n'; 8 * MIB]), "name");
    add("dtype", &tensor(2, &vec![b'F'; 8 * MIB]), "dtype");
    let wide = Message::default()
        .bytes(1, b"n")
        .bytes(2, b"U8")
        .bytes(3, &[1; 64])
        .raw(&[0x20, 1, 0x28, 1, 0x40, 1]);
    let wide = Message::default().message(1, &wide);
    let wide = Message::default().message(2, &wide).0;
    add("loose-of-dimensions", &block(&wide.repeat(1024)).repeat(128), "dimensions");
    let narrow =
        Message::default().bytes(1, b"n").bytes(2, b"U8").raw(&[0x20, 1, 0x28, 1, 0x40, 1]);
    let range = Message::default().bytes(2, &[]);
    let narrow = Message::default().message(1, &narrow).raw(&range.0.repeat(2));
    let narrow = Message::default().message(2, &narrow).0;
    add("loose-of-tensors", &block(&narrow.repeat(2)).repeat(65_536), "layer 0");
    add("ids", &Message::default().bytes(3, &vec![0; 8 * MIB]).0, "says it is layer 0");
}
