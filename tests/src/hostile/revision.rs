//! Revisions: manifests that no daemon may serve.

mod spelled;
mod values;

use serde_json::{Value, json};

use super::{Cases, Kind};

const ZERO: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A revision that is right, every field in it.
#[must_use]
pub fn sound() -> String {
    text(&document())
}

fn document() -> Value {
    json!({
        "format_version": "1.1",
        "model_version": "1.0",
        "model": "hostile",
        "revision": 1,
        "parent": ZERO,
        "created_at": "2026-01-01T00:00:00Z",
        "layers": [{"layer": 0, "kind": "moe"}, {"layer": 2, "kind": "mtp"}],
        "scoring": {
            "function": "softmax", "correction_bias": false, "normalize": true, "scale": 1.0,
        },
        "default_tier_set": ["a"],
        "tier_sets": {"small": ["a"], "all": ["a", 7]},
        "requires": [],
        "files": {"config.json": {"object": "config.json", "bytes": 2, "digest": ZERO}},
        "tiers": [
            {
                "id": "a",
                "created_at": "2026-01-01T00:00:00Z",
                "parameter_budget": 100,
                "groups": [{"experts": 2, "hidden_size": 4, "intermediate_size": 2}],
                "placement": "dram",
                "routing": {"k_tier": 1, "k_group": 1, "k_expert": 1},
                "compatibility": {
                    "format_version": "1.0", "requires": [], "dtypes": ["BF16"],
                    "quantization": "none",
                },
            },
            {"id": 7, "parameter_budget": 100, "groups": [{"experts": 2}, {"experts": 3}]},
        ],
    })
}

fn text(document: &Value) -> String {
    serde_json::to_string_pretty(document).unwrap_or_default()
}

/// The document with a value in another's place, or in none's.
fn with(pointer: &str, value: Value) -> String {
    let mut document = document();
    let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
    match document.pointer_mut(parent) {
        Some(Value::Object(members)) => drop(members.insert(key.to_owned(), value)),
        Some(Value::Array(items)) => {
            let n: usize = key.parse().unwrap_or(items.len());
            items.splice(n..(n + 1).min(items.len()), [value]);
        }
        _ => {}
    }
    text(&document)
}

fn without(pointer: &str) -> String {
    let mut document = document();
    let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
    if let Some(Value::Object(members)) = document.pointer_mut(parent) {
        members.remove(key);
    }
    text(&document)
}

/// The document's text with one part of it replaced by something else.
fn replaced(from: &str, to: &str) -> String {
    sound().replacen(from, to, 1)
}

/// Every field, and what its value must be.
const FIELDS: &[(&str, Expected)] = &[
    ("/format_version", Expected::Text),
    ("/model_version", Expected::Text),
    ("/model", Expected::Text),
    ("/revision", Expected::Integer),
    ("/parent", Expected::Text),
    ("/created_at", Expected::Text),
    ("/objects_base", Expected::Text),
    ("/layers", Expected::List),
    ("/layers/0", Expected::Object),
    ("/layers/0/layer", Expected::Integer),
    ("/layers/1/kind", Expected::Text),
    ("/scoring", Expected::Object),
    ("/scoring/function", Expected::Text),
    ("/scoring/correction_bias", Expected::Boolean),
    ("/scoring/normalize", Expected::Boolean),
    ("/scoring/scale", Expected::Number),
    ("/default_tier_set", Expected::List),
    ("/default_tier_set/0", Expected::TierId),
    ("/tier_sets", Expected::Object),
    ("/tier_sets/all", Expected::List),
    ("/tier_sets/all/1", Expected::TierId),
    ("/requires", Expected::List),
    ("/requires/0", Expected::Text),
    ("/files", Expected::Object),
    ("/files/config.json", Expected::Object),
    ("/files/config.json/object", Expected::Text),
    ("/files/config.json/bytes", Expected::Integer),
    ("/files/config.json/digest", Expected::Text),
    ("/dense", Expected::Object),
    ("/tiers", Expected::List),
    ("/tiers/1", Expected::Object),
    ("/tiers/0/id", Expected::TierId),
    ("/tiers/0/created_at", Expected::Text),
    ("/tiers/0/parameter_budget", Expected::Integer),
    ("/tiers/0/groups", Expected::List),
    ("/tiers/1/groups/1", Expected::Object),
    ("/tiers/0/groups/0/experts", Expected::Integer),
    ("/tiers/0/groups/0/hidden_size", Expected::Integer),
    ("/tiers/0/groups/0/intermediate_size", Expected::Integer),
    ("/tiers/0/placement", Expected::Text),
    ("/tiers/0/routing", Expected::Object),
    ("/tiers/0/routing/k_tier", Expected::Integer),
    ("/tiers/0/routing/k_group", Expected::Integer),
    ("/tiers/0/routing/k_expert", Expected::Integer),
    ("/tiers/0/compatibility", Expected::Object),
    ("/tiers/0/compatibility/format_version", Expected::Text),
    ("/tiers/0/compatibility/requires", Expected::List),
    ("/tiers/0/compatibility/dtypes", Expected::List),
    ("/tiers/0/compatibility/dtypes/0", Expected::Text),
    ("/tiers/0/compatibility/quantization", Expected::Text),
    ("/tiers/0/index", Expected::Object),
];

#[derive(Clone, Copy)]
enum Expected {
    Text,
    Integer,
    Number,
    Boolean,
    List,
    Object,
    TierId,
}

impl Expected {
    /// What the refusal says is expected, and two values that are not it.
    fn wrong(self) -> (&'static str, [(&'static str, Value); 2]) {
        let (list, object) = (("list", json!([])), ("object", json!({})));
        let (number, text) = (("number", json!(7)), ("string", json!("x")));
        match self {
            Self::Text => ("string is expected", [number, list]),
            Self::Integer => ("an integer", [("fraction", json!(1.5)), text]),
            Self::Number => ("a number is expected", [text, object]),
            Self::Boolean => ("true or false is expected", [number, text]),
            Self::List => ("a list is expected", [object, number]),
            Self::Object => ("an object is expected", [list, text]),
            Self::TierId => ("an integer or a string", [object, ("boolean", json!(true))]),
        }
    }
}

pub(super) fn cases(cases: &mut Cases) {
    let kind = Kind::Revision;
    for (place, expected) in FIELDS {
        let (says, wrong) = expected.wrong();
        for (what, value) in wrong {
            let name = format!("{}-is-{what}.json", place[1..].replace(['/', '.'], "-"));
            cases.add(kind, &name, with(place, value), place, says);
        }
    }
    for (name, pointer, value, says) in values::values() {
        let place = match name {
            "group-without-experts" => "/tiers/0/groups/0/experts",
            "tier-id-as-both" => "/tiers/1/id",
            "set-name-with-slash" => "/tier_sets/..~1x",
            "set-name-empty" => "/tier_sets/",
            "set-name-with-newline" => "/tier_sets/x",
            "set-name-too-long" => "/tier_sets/sss",
            "index-of-nothing" => "/tiers/0/index/digest",
            "file-of-nothing" => "/files/config.json/digest",
            "dense-digest-malformed" => "/dense/digest",
            "dense-header-beyond" | "index-header-endless" => "/dense/header_bytes",
            "index-headers-too-large-together" => "/tiers/1/index/header_bytes",
            "index-header-beyond" | "index-header-beyond-by-one" => "/tiers/0/index/header_bytes",
            _ => pointer,
        };
        cases.add(kind, &format!("{name}.json"), with(pointer, value), place, says);
    }
    for pointer in [
        "/format_version",
        "/tiers",
        "/layers/0/layer",
        "/tiers/0/id",
        "/tiers/0/parameter_budget",
        "/tiers/0/groups",
        "/tiers/0/groups/0/experts",
        "/files/config.json/object",
        "/files/config.json/bytes",
        "/files/config.json/digest",
    ] {
        let name = format!("{}-missing.json", pointer[1..].replace(['/', '.'], "-"));
        cases.add(kind, &name, without(pointer), pointer, "missing");
    }
    spelled::cases(cases);
}
