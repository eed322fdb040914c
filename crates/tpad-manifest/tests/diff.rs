//! Revisions against each other: every change is seen, and weighed.

use std::sync::Arc;

use serde_json::{Value, json};
use tpad_manifest::{
    BlockId, BlockRecord, ByteRange, Change, Changes, Dtype, Effect, GateUp, Index, IndexBuilder,
    Manifest, Orientation, Part, Projection, Role, Source, TensorRecord, TierId,
};

fn digest(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

fn index(n: u8) -> Value {
    json!({"digest": digest(n), "header_bytes": 10, "bytes": 20})
}

/// A document in which every field says something.
fn document() -> Value {
    json!({
        "format_version": "1.1",
        "model_version": "3.4",
        "model": "one",
        "revision": 7,
        "parent": digest(0xaa),
        "created_at": "2026-01-02T03:04:05Z",
        "objects_base": "s3://bucket/shards",
        "layers": [{"layer": 1, "kind": "moe"}, {"layer": 2, "kind": "mtp"}],
        "scoring": {
            "function": "sigmoid", "correction_bias": true, "normalize": true, "scale": 2.5,
            "groups": "top_two_sum",
        },
        "default_tier_set": ["base"],
        "tier_sets": {"all": ["base", 10]},
        "requires": [],
        "files": {"config.json": {"object": "config.json", "bytes": 3, "digest": digest(1)}},
        "dense": index(2),
        "tiers": [tier(&json!("base"), 3), tier(&json!(10), 4)],
    })
}

fn tier(id: &Value, n: u8) -> Value {
    json!({
        "id": id,
        "created_at": "2026-01-02T03:04:05Z",
        "parameter_budget": 1000,
        "groups": [
            {"experts": 8, "hidden_size": 16, "intermediate_size": 32},
            {"experts": 4, "hidden_size": 16, "intermediate_size": 64},
        ],
        "placement": "dram",
        "routing": {"k_tier": 1, "k_group": 1, "k_expert": 2},
        "compatibility": {
            "format_version": "1.0", "requires": [], "dtypes": ["BF16"], "quantization": "int4",
        },
        "index": index(n),
    })
}

fn parse(document: &Value) -> Manifest {
    let loaded = Manifest::parse(document.to_string().as_bytes());
    loaded.unwrap_or_else(|refused| unreachable!("{refused}: {document:#}")).manifest
}

fn changes(new: &Value) -> Changes {
    Changes::between(&parse(&document()), &parse(new))
}

fn edited(pointer: &str, value: Value) -> Value {
    let mut document = document();
    *document.pointer_mut(pointer).unwrap_or_else(|| unreachable!("no {pointer}")) = value;
    document
}

#[test]
fn equal_documents_have_no_changes() {
    let same = changes(&document());
    assert!(same.is_empty() && same.effect().is_none(), "{same:?}");
}

#[test]
fn each_change_has_its_kind_and_effect() {
    use Effect::{Additive, Breaking, Metadata};
    let mut three = document()["tiers"].as_array().expect("a list").clone();
    three.push(tier(&json!("new"), 9));
    let mut first = three.clone();
    first.rotate_right(1);
    let reordered: Vec<Value> =
        document()["tiers"].as_array().expect("a list").iter().rev().cloned().collect();
    let one_tier = {
        let mut document = edited("/tiers", json!([tier(&json!("base"), 3)]));
        document["tier_sets"] = json!({"all": ["base"]});
        document
    };
    for (new, expected) in [
        (edited("/tiers", three.into()), vec![("tier_added", Additive)]),
        (edited("/tiers", reordered.into()), vec![("tiers_reordered", Breaking)]),
        (
            edited("/tiers", first.into()),
            vec![("tiers_reordered", Breaking), ("tier_added", Additive)],
        ),
        (
            edited("/tiers/0/created_at", json!("2026-01-02T03:04:06Z")),
            vec![("created_at_changed", Metadata)],
        ),
        (one_tier, vec![("tier_set_changed", Metadata), ("tier_removed", Breaking)]),
        (edited("/tiers/0/placement", json!("nvme")), vec![("placement_changed", Metadata)]),
        (edited("/tiers/1/parameter_budget", json!(1001)), vec![("budget_changed", Metadata)]),
        (edited("/tiers/0/routing/k_tier", json!(2)), vec![("routing_altered", Breaking)]),
        (edited("/tiers/0/routing/k_group", json!(2)), vec![("routing_altered", Breaking)]),
        (edited("/tiers/0/routing/k_expert", json!(1)), vec![("routing_altered", Breaking)]),
        (edited("/tiers/0/groups/1/experts", json!(5)), vec![("group_altered", Breaking)]),
        (
            edited(
                "/tiers/0/groups",
                json!([{"experts": 8, "hidden_size": 16, "intermediate_size": 32}]),
            ),
            vec![("group_altered", Breaking)],
        ),
        (
            edited("/tiers/0/compatibility/dtypes", json!(["F32"])),
            vec![("compatibility_altered", Breaking)],
        ),
        (
            edited("/tiers/0/compatibility/quantization", json!("int8")),
            vec![("compatibility_altered", Breaking)],
        ),
        (edited("/tiers/0/index/digest", json!(digest(0xee))), vec![("index_altered", Breaking)]),
        (edited("/dense/digest", json!(digest(0xee))), vec![("index_altered", Breaking)]),
        (edited("/tiers/0/index", Value::Null), vec![("index_removed", Breaking)]),
        (edited("/scoring/scale", json!(1.0)), vec![("document_altered", Breaking)]),
        (edited("/layers/0/layer", json!(0)), vec![("document_altered", Breaking)]),
        (edited("/default_tier_set", json!(["base", 10])), vec![("document_altered", Breaking)]),
        (edited("/tier_sets/all", json!([10, "base"])), vec![]),
        (
            edited("/tier_sets", json!({"all": ["base", 10], "more": [10]})),
            vec![("entry_added", Additive)],
        ),
        (edited("/tier_sets", json!({})), vec![("tier_set_changed", Metadata)]),
        (
            edited("/files/config.json/digest", json!(digest(0xee))),
            vec![("file_altered", Breaking)],
        ),
        (edited("/files", json!({})), vec![("file_altered", Breaking)]),
        (edited("/model", json!("two")), vec![("document_changed", Metadata)]),
        (edited("/objects_base", json!("s3://bucket/other")), vec![("document_changed", Metadata)]),
        (edited("/format_version", json!("1.7")), vec![("document_changed", Metadata)]),
    ] {
        let changes = changes(&new);
        let found: Vec<(&str, Effect)> =
            changes.list().iter().map(|change| (change.kind(), change.effect())).collect();
        assert_eq!(found, expected, "{new:#}");
        assert_eq!(changes.effect(), expected.iter().map(|(_, effect)| *effect).max());
    }
}

/// Whatever a publisher's edit touches, it is seen: each value of the document is
/// replaced in turn.
#[test]
fn no_single_edit_goes_unseen() {
    // Which revision it is, and when it was made, is no change of content. The
    // order of the ids in a set, sizes that a digest implies and paths of files
    // with equal digests are none either.
    let ignored = |pointer: &str| {
        let own = ["/revision", "/parent", "/model_version", "/created_at"];
        own.contains(&pointer)
            || pointer.ends_with("/bytes")
            || pointer.ends_with("/header_bytes")
            || pointer.ends_with("/object")
    };
    let mut pointers = Vec::new();
    leaves(&document(), &mut String::new(), &mut pointers);
    let mut tried = 0;
    for pointer in pointers.iter().filter(|pointer| !ignored(pointer)) {
        let old = document().pointer(pointer).expect("it is there").clone();
        for value in others(&old) {
            let new = edited(pointer, value.clone());
            let Ok(loaded) = Manifest::parse(new.to_string().as_bytes()) else { continue };
            if !loaded.warnings.is_empty() {
                // A value that is not known takes its default.
                continue;
            }
            let changes = Changes::between(&parse(&document()), &loaded.manifest);
            assert!(!changes.is_empty(), "{pointer} was {old}, is {value}");
            tried += 1;
        }
    }
    assert!(tried > 60, "only {tried} edits were read");
}

fn leaves(value: &Value, at: &mut String, pointers: &mut Vec<String>) {
    let length = at.len();
    let mut visit = |name: String, value: &Value| {
        at.push('/');
        at.push_str(&name);
        leaves(value, at, pointers);
        at.truncate(length);
    };
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| visit(name.clone(), value));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, value)| visit(n.to_string(), value));
        }
        _ => pointers.push(at.clone()),
    }
}

fn others(value: &Value) -> Vec<Value> {
    match value {
        Value::Bool(is) => vec![json!(!is)],
        Value::Number(number) => {
            let n = number.as_f64().expect("a number");
            vec![json!(n + 1.0), json!(number.as_u64().map_or(0, |n| n + 1))]
        }
        Value::String(_) => [
            "base",
            "other",
            "1.9",
            "s3://bucket/x",
            "softmax",
            "max",
            "mtp",
            "moe",
            "nvme",
            "F32",
            &digest(0x77),
        ]
        .iter()
        .map(|text| json!(text))
        .filter(|other| other != value)
        .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn breaking_changes_need_another_major() {
    let old = parse(&document());
    let mut new = edited("/tiers/0/routing/k_expert", json!(1));
    new["scoring"]["normalize"] = json!(false);
    let same_major = parse(&new);
    let problems = Changes::between(&old, &same_major).unannounced(&old, &same_major);
    let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].starts_with("scoring: was {"), "{texts:?}");
    assert_eq!(texts[1], "tier base: k_expert was 2 and is 1");
    new["model_version"] = json!("4.0");
    let next_major = parse(&new);
    assert!(Changes::between(&old, &next_major).unannounced(&old, &next_major).is_empty());
}

fn tensor(name: &str, object: &str, offset: u64) -> TensorRecord {
    TensorRecord {
        name: name.into(),
        dtype: "F32".parse::<Dtype>().expect("a type"),
        shape: vec![4, 2],
        role: Role { projection: Projection::Up, part: Part::Weight },
        orientation: Orientation::OutIn,
        gate_up: GateUp::Unknown,
        values_per_element: 1,
        sliced: false,
        ranges: vec![ByteRange { object: Arc::from(object), offset, bytes: 32 }],
    }
}

fn block(n: u8, tensor: TensorRecord, source: Option<Source>) -> BlockRecord {
    BlockRecord { id: BlockId::from_bytes([n; 32]), tensors: vec![tensor], source }
}

fn expert(n: u8) -> BlockRecord {
    let source = Source { expert: n.into(), column: n.into() };
    block(n, tensor(&format!("e.{n}.up"), "shard", u64::from(n) * 32), Some(source))
}

fn layer(experts: &[BlockRecord], router: &BlockRecord) -> Index {
    let mut builder = IndexBuilder::for_tier(&TierId::Number(10));
    builder.push_layer(3, &[experts.to_vec()], Some(router)).expect("an index");
    builder.finish()
}

#[test]
fn blocks_tell_what_an_index_alone_does_not() {
    let experts = [expert(0), expert(1), expert(2)];
    let router = block(9, tensor("router", "shard", 1024), None);
    let old = layer(&experts, &router);
    let compare = |experts: &[BlockRecord], router: &BlockRecord| {
        let new = layer(experts, router);
        let mut changes = Changes::default();
        let side = |index: &Index| (index.header.clone(), index.segments[0].clone());
        let ((a, b), (c, d)) = (side(&old), side(&new));
        changes.compare_layer(&TierId::Number(10), 3, Some((&a, &b)), Some((&c, &d)));
        let list = changes.list().iter();
        list.map(|change| format!("{}: {change}", change.place())).collect::<Vec<String>>()
    };
    assert_eq!(compare(&experts, &router), Vec::<String>::new());

    let mut other = experts.clone();
    other[1].id = BlockId::from_bytes([77; 32]);
    assert_eq!(compare(&other, &router), ["expert 10/0/1, layer 3: its bytes differ"]);

    let mut other = experts.clone();
    other[2].source = Some(Source { expert: 2, column: 5 });
    assert_eq!(
        compare(&other, &router),
        ["expert 10/0/2, layer 3: its source expert or router column differs"]
    );

    let mut other = experts.clone();
    other[0].tensors[0].shape = vec![2, 4];
    assert_eq!(
        compare(&other, &router),
        ["expert 10/0/0, layer 3: its tensors have other names, types or shapes"]
    );

    let mut other = experts.clone();
    other.iter_mut().for_each(|e| e.tensors[0].ranges[0].object = "elsewhere".into());
    assert_eq!(
        compare(&other, &router),
        ["tier 10, layer 3: 3 blocks are kept elsewhere, their bytes unchanged"]
    );

    assert_eq!(compare(&experts[..2], &router), ["expert 10/0/2, layer 3: it is gone"]);
    let mut other = router.clone();
    other.id = BlockId::from_bytes([78; 32]);
    assert_eq!(compare(&experts, &other), ["router of tier 10, layer 3: its bytes differ"]);
}

#[test]
fn dense_tensors_are_compared_by_name() {
    let index = |tensors: &[(&str, u8)]| {
        let mut builder = IndexBuilder::dense();
        let blocks: Vec<BlockRecord> =
            tensors.iter().map(|(name, n)| block(*n, tensor(name, "shard", 0), None)).collect();
        builder.push_dense(&blocks).expect("an index");
        builder.finish()
    };
    let old = index(&[("a", 1), ("b", 2), ("c", 3)]);
    let new = index(&[("b", 2), ("c", 4), ("d", 5)]);
    let mut changes = Changes::default();
    changes.compare_dense(
        Some((&old.header, &old.segments[0])),
        Some((&new.header, &new.segments[0])),
    );
    let texts: Vec<String> =
        changes.list().iter().map(|change| format!("{}: {change}", change.place())).collect();
    assert_eq!(
        texts,
        [
            "dense tensor c: its bytes differ",
            "dense tensor d: it is new",
            "dense tensor a: it is gone"
        ]
    );
    assert_eq!(changes.effect(), Some(Effect::Breaking));
}

#[test]
fn more_changes_than_are_listed_are_counted() {
    let name = |n: u32| format!("set{n}");
    let mut old = document();
    let sets = |n: u32| (0..n).map(|n| (name(n), json!([10]))).collect::<serde_json::Map<_, _>>();
    old["tier_sets"] = Value::Object(sets(1));
    let mut new = old.clone();
    new["tier_sets"] = Value::Object(sets(1000));
    new["scoring"]["scale"] = json!(3.0);
    let mut many = Changes::between(&parse(&old), &parse(&new));
    many.extend(Changes::between(&parse(&old), &parse(&new)));
    assert_eq!((many.list().len(), many.omitted()), (1024, 2 * 1000 - 1024));
    assert_eq!(many.effect(), Some(Effect::Breaking));
}

#[test]
fn refining_replaces_what_the_document_alone_tells() {
    let mut changes = changes(&edited("/tiers/1/index/digest", json!(digest(0xee))));
    let tier = TierId::Number(10);
    assert_eq!(changes.altered_indexes(), [Some(tier.clone())]);
    let mut blocks = Changes::default();
    blocks.compare_layer(&tier, 1, None, None);
    changes.refine(Some(&tier), blocks);
    assert!(changes.is_empty(), "{changes:?}");
    assert!(!matches!(changes.list(), [Change::IndexAltered { .. }]));
}
