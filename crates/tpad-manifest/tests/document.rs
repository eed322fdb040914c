//! What documents are read as, and what is refused with which words.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use tpad_manifest::{
    Compatibility, Digest, Dtype, FORMAT_VERSION, FileRecord, FormatVersion, GroupRecord,
    GroupScoring, IndexRef, LayerKind, LayerRecord, Manifest, ModelVersion, Placement, Rejected,
    Routing, Scoring, ScoringFunction, TierId, TierRecord,
};

/// The bare specification's document. It was written by hand, stands for every
/// manifest of format 1.0 that is out there, and is never regenerated.
const GOLDEN: &str = include_str!("golden/manifest-1.0.json");

fn sound() -> Value {
    json!({
        "format_version": "1.1",
        "model": "m",
        "revision": 3,
        "layers": [{"layer": 0}, {"layer": 2, "kind": "mtp"}],
        "default_tier_set": ["a"],
        "tiers": [
            {"id": "a", "parameter_budget": 10, "groups": [{"experts": 2}]},
            {"id": 7, "parameter_budget": 10, "groups": [{"experts": 2}, {"experts": 3}]},
        ],
    })
}

fn edited(pointer: &str, value: Value) -> Value {
    let mut document = sound();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = document.pointer_mut(parent).expect("the parent is there");
    parent.as_object_mut().expect("its members have names").insert(key.into(), value);
    document
}

fn rejected(document: &Value) -> Rejected {
    let text = document.to_string();
    Manifest::parse(text.as_bytes()).expect_err(&text)
}

#[test]
fn the_golden_document_loads_with_the_defaults() {
    let loaded = Manifest::parse(GOLDEN.as_bytes()).expect("1.0 is read for good");
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.skipped, BTreeMap::new());
    let manifest = loaded.manifest;
    assert_eq!(manifest.format_version, FormatVersion { major: 1, minor: 0 });
    assert_eq!(manifest.model_version, ModelVersion { major: 1, minor: 0 });
    assert_eq!((manifest.revision, manifest.model.as_str()), (0, ""));
    assert_eq!(manifest.scoring, Scoring::default());
    let ids =
        [TierId::Name("tier_1b".into()), TierId::Number(10), TierId::Name("tier_100b".into())];
    assert_eq!(manifest.default_tier_set, ids, "without the field, every tier");
    assert_eq!(manifest.tier_sets, BTreeMap::new());
    let groups: Vec<Vec<u32>> =
        manifest.tiers.iter().map(|tier| tier.groups.iter().map(|g| g.experts).collect()).collect();
    assert_eq!(groups, [vec![8, 8], vec![64, 32, 16], vec![256]]);
    let bare = &manifest.tiers[2];
    assert_eq!(bare.placement, Placement::ObjectStore, "a missing placement warms nothing");
    assert_eq!(bare.routing, Routing { k_tier: 1, k_group: 1, k_expert: 1 });
    assert_eq!(bare.index, None, "metadata alone");
    assert_eq!(manifest.tiers[1].compatibility.quantization.as_deref(), Some("fp8"));
}

#[test]
fn what_is_written_is_of_this_version_and_reads_back() {
    let mut manifest = Manifest::parse(GOLDEN.as_bytes()).expect("reads").manifest;
    manifest.format_version = FORMAT_VERSION;
    let text = manifest.to_json();
    assert!(text.contains("\"format_version\": \"1.1\""));
    assert_eq!(Manifest::parse(text.as_bytes()).expect("reads back").manifest, manifest);
}

#[test]
fn fields_at_their_defaults_that_came_later_are_not_written() {
    let loaded = Manifest::parse(sound().to_string().as_bytes()).expect("an older 1.1");
    let mut manifest = loaded.manifest;
    let text = manifest.to_json();
    assert!(!text.contains("tier_sets") && !text.contains("\"groups\": \"log"), "{text}");
    manifest.scoring.groups = GroupScoring::TopTwoSum;
    manifest.tier_sets = BTreeMap::from([("small".into(), vec![TierId::Number(7)])]);
    let text = manifest.to_json();
    assert!(text.contains("\"groups\": \"top_two_sum\""), "{text}");
    assert_eq!(Manifest::parse(text.as_bytes()).expect("reads back").manifest, manifest);
}

#[test]
fn a_tier_s_metadata_stands_alone() {
    let tier = Manifest::parse(GOLDEN.as_bytes()).expect("reads").manifest.tiers[1].clone();
    let text = serde_json::to_string(&tier).expect("writes");
    assert_eq!(text.parse::<TierRecord>(), Ok(tier));
    let error =
        "{\"id\": []}".parse::<TierRecord>().expect_err("wrong in three places").to_string();
    for place in [
        "/id: a tier id is an integer or a string",
        "/parameter_budget: missing",
        "/groups: missing",
    ] {
        assert!(error.contains(place), "{error}");
    }
}

#[test]
fn another_major_and_unknown_requirements_say_what_to_do() {
    for (document, words) in [
        (edited("/format_version", json!("2.0")), ["2.0", "supports 1.x", "upgrade tpad"]),
        (
            edited("/format_version", json!("0.9")),
            ["0.9", "supports 1.x", "import the checkpoint again"],
        ),
        (
            edited("/requires", json!(["teleport"])),
            ["\"teleport\"", "does not know", "upgrade tpad"],
        ),
    ] {
        let Rejected(problems) = rejected(&document);
        assert_eq!(
            problems.len(),
            1,
            "nothing else can be said of a document that is not understood"
        );
        for word in words {
            assert!(problems[0].message.contains(word), "{} lacks {word}", problems[0]);
        }
    }
}

#[test]
fn a_newer_minor_is_read_and_what_it_adds_is_ignored() {
    let mut document = edited("/format_version", json!("1.99"));
    document["novelty"] = json!({"deep": [1, 2, {"a": null}]});
    document["tiers"][0]["novelty"] = json!(1.5);
    document["tiers"][0]["placement"] = json!("holographic");
    document["tiers"][0]["compatibility"] = json!({"quantization": "q99", "novelty": []});
    document["layers"][0]["kind"] = json!("sideways");
    document["scoring"] = json!({"function": "entmax", "groups": "median"});
    let loaded = Manifest::parse(document.to_string().as_bytes()).expect("same major");
    let places: Vec<&str> = loaded.warnings.iter().map(|warning| warning.place.as_str()).collect();
    assert_eq!(
        places,
        ["/tiers/0/placement", "/layers/0/kind", "/scoring/function", "/scoring/groups"]
    );
    assert_eq!(loaded.manifest.tiers[0].placement, Placement::ObjectStore);
    // A worker that is told of this manifest must not take it for a softmax.
    let told = Manifest::parse(loaded.manifest.to_json().as_bytes()).expect("what was read");
    for scoring in [loaded.manifest.scoring, told.manifest.scoring] {
        assert_eq!(scoring.function, ScoringFunction::Unknown);
        assert_eq!(scoring.groups, GroupScoring::Unknown);
    }
    assert_eq!(loaded.manifest.tiers[0].compatibility.quantization.as_deref(), Some("q99"));
    assert_eq!(loaded.skipped, BTreeMap::new());
}

#[test]
fn a_tier_is_skipped_only_for_what_it_needs() {
    let mut document = sound();
    document["tiers"][0]["compatibility"] = json!({"requires": ["warp"]});
    document["tiers"][1]["compatibility"] = json!({"dtypes": ["BF16", "F3"]});
    let loaded = Manifest::parse(document.to_string().as_bytes()).expect("the rest is served");
    assert!(loaded.skipped[&TierId::Name("a".into())].contains("\"warp\""));
    assert!(loaded.skipped[&TierId::Number(7)].contains("F3"));
}

#[test]
fn every_problem_is_reported_with_its_place() {
    let document = json!({
        "format_version": "1.1",
        "revision": -1,
        "parent": "xyz",
        "created_at": "yesterday",
        "layers": [{"layer": 4}, {"layer": 4}, {}],
        "scoring": {"normalize": "yes"},
        "default_tier_set": ["a", "a", "zzz"],
        "tier_sets": {"ok": ["a"], "no good": [], "twice": ["a", "a"], "x": ["zzz"], "n": 3, "m": null},
        "files": {"../x": {"object": "/etc/passwd", "bytes": 1, "digest": "0"}, "a/b": 3},
        "dense": {"digest": "0", "bytes": 1},
        "tiers": [
            {"id": "a", "parameter_budget": 1.5, "groups": []},
            {"id": 1, "parameter_budget": 1, "groups": [{"experts": 0}, {"experts": 4294967296u64}]},
            {"id": "1", "parameter_budget": 1, "groups": [{}], "routing": {"k_expert": 0, "k_group": 2}},
            {"parameter_budget": "many", "groups": [3]},
            {"id": "no/slash", "parameter_budget": 1, "groups": [{"experts": 1}],
             "index": {"digest": "x", "header_bytes": 9, "bytes": 3}},
        ],
    });
    let Rejected(problems) = rejected(&document);
    let places: Vec<&str> = problems.iter().map(|problem| problem.place.as_str()).collect();
    for place in [
        "/revision",
        "/parent",
        "/created_at",
        "/layers/1",
        "/layers/2/layer",
        "/scoring/normalize",
        "/default_tier_set/1",
        "/default_tier_set/2",
        "/tier_sets/no good",
        "/tier_sets/twice/1",
        "/tier_sets/x/0",
        "/tier_sets/n",
        "/tier_sets/m",
        "/files/..~1x",
        "/files/..~1x/object",
        "/files/..~1x/digest",
        "/files/a~1b",
        "/dense/digest",
        "/dense/header_bytes",
        "/tiers/0/parameter_budget",
        "/tiers/0/groups",
        "/tiers/1/groups/0/experts",
        "/tiers/1/groups/1/experts",
        "/tiers/2/id",
        "/tiers/2/groups/0/experts",
        "/tiers/2/routing/k_expert",
        "/tiers/2/routing/k_group",
        "/tiers/3/id",
        "/tiers/3/parameter_budget",
        "/tiers/3/groups/0",
        "/tiers/4/id",
    ] {
        assert!(places.contains(&place), "no problem at {place} among {places:?}");
    }
}

#[test]
fn an_integer_and_a_string_that_read_alike_are_refused() {
    let mut document = sound();
    document["tiers"][0]["id"] = json!("7");
    document["default_tier_set"] = json!(["7"]);
    let error = rejected(&document).to_string();
    assert!(error.contains("/tiers/1/id: 7 is there as an integer and as a string"), "{error}");
}

#[test]
fn what_is_not_a_manifest_is_named() {
    for (document, words) in [
        (String::new(), "not JSON"),
        ("[]".into(), "the document is a list, an object is expected"),
        ("{}".into(), "/format_version: missing"),
        (
            "{\"format_version\": 1.1, \"tiers\": []}".into(),
            "/format_version: a string is expected",
        ),
        ("{\"format_version\": \"1.1\"}".into(), "/tiers: missing"),
        (
            "{\"format_version\": \"1.1\", \"tiers\": [], \"tiers\": []}".into(),
            "/tiers: the key appears more than once",
        ),
        ("{\"a\":".repeat(100_000), "not JSON"),
        (" ".repeat(tpad_manifest::MAX_DOCUMENT_BYTES + 1), "at most"),
    ] {
        let error = Manifest::parse(document.as_bytes()).expect_err("no manifest").to_string();
        assert!(error.contains(words), "{error} lacks {words}");
    }
}

fn manifests() -> impl Strategy<Value = Manifest> {
    let tier = (
        any::<u64>(),
        proptest::collection::vec((1u32..300, any::<Option<u64>>()), 1..4),
        0..4u8,
        any::<bool>(),
    );
    let tiers = proptest::collection::vec(tier, 0..5);
    (
        tiers,
        any::<u64>(),
        proptest::collection::btree_set(any::<u32>(), 0..6),
        any::<[u8; 32]>(),
        -1e9..1e9f64,
    )
        .prop_map(|(tiers, revision, layers, digest, scale)| {
            let digest = Digest::from_bytes(digest);
            let tiers: Vec<TierRecord> = tiers
                .into_iter()
                .enumerate()
                .map(|(n, (budget, groups, placement, named))| {
                    tier_record(n, budget, &groups, placement, named, digest)
                })
                .collect();
            Manifest {
                format_version: FORMAT_VERSION,
                model_version: ModelVersion { major: 2, minor: 5 },
                model: "a \"model\" \u{1f600}".into(),
                revision,
                parent: Some(digest),
                created_at: "2026-01-02T03:04:05Z".parse().ok(),
                objects_base: (revision % 2 == 0).then(|| "s3://bucket/prefix".into()),
                layers: layers
                    .into_iter()
                    .map(|layer| LayerRecord {
                        layer,
                        kind: if layer % 2 == 0 { LayerKind::Moe } else { LayerKind::Mtp },
                    })
                    .collect(),
                scoring: Scoring {
                    function: ScoringFunction::Sigmoid,
                    correction_bias: true,
                    normalize: true,
                    scale,
                    groups: [GroupScoring::LogSumExp, GroupScoring::Max, GroupScoring::TopTwoSum]
                        [usize::try_from(revision % 3).expect("small")],
                },
                default_tier_set: tiers.iter().take(1).map(|tier| tier.id.clone()).collect(),
                tier_sets: tiers
                    .iter()
                    .map(|tier| (format!("set.{}", tier.id), vec![tier.id.clone()]))
                    .collect(),
                requires: vec![],
                files: BTreeMap::from([(
                    "config.json".into(),
                    FileRecord { object: "a/config.json".into(), bytes: 9, digest },
                )]),
                dense: Some(IndexRef { digest, header_bytes: 1, bytes: 2 }),
                tiers,
            }
        })
}

fn tier_record(
    n: usize,
    budget: u64,
    groups: &[(u32, Option<u64>)],
    placement: u8,
    named: bool,
    digest: Digest,
) -> TierRecord {
    TierRecord {
        id: if named { TierId::Name(format!("t{n}").into()) } else { TierId::Number(n as u64) },
        created_at: None,
        parameter_budget: budget,
        groups: groups
            .iter()
            .map(|(experts, size)| GroupRecord {
                experts: *experts,
                hidden_size: *size,
                intermediate_size: None,
            })
            .collect(),
        placement: [Placement::Hbm, Placement::Dram, Placement::Nvme, Placement::ObjectStore]
            [usize::from(placement)],
        routing: Routing { k_tier: 3, k_group: 1, k_expert: 1 },
        compatibility: Compatibility {
            format_version: FORMAT_VERSION,
            requires: vec![],
            dtypes: vec![Dtype::from("BF16")],
            quantization: Some("x".into()),
        },
        index: Some(IndexRef { digest, header_bytes: 4, bytes: 5 }),
    }
}

proptest! {
    #[test]
    fn any_manifest_reads_back(manifest in manifests()) {
        let loaded = Manifest::parse(manifest.to_json().as_bytes()).expect("it was written by tpad");
        prop_assert_eq!(loaded.manifest, manifest);
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Manifest::parse(&bytes);
    }
}
