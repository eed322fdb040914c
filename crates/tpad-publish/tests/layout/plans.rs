//! Plans: experts and router rows sorted into tiers.

use proptest::prelude::*;
use serde_json::{Value, json};
use tpad_manifest::{ByteRange, GroupScoring, Placement, Problem, Routing, TensorRecord, TierId};
use tpad_publish::{Checkpoint, Mapping, Plan, PlanError, TierDraft, map, recognise};

use crate::fixture::Fixture;

fn checkpoint(name: &str) -> Checkpoint {
    let fixture = Fixture::load(name);
    recognise(&fixture.tensors, &fixture.config).expect("a known layout")
}

fn planned(name: &str, plan: &str) -> Mapping {
    let plan = Plan::parse(plan).expect("a plan");
    map(&checkpoint(name), Some(&plan)).expect("a plan that fits")
}

fn problems(name: &str, plan: &str) -> Vec<Problem> {
    let mapped = Plan::parse(plan).and_then(|plan| map(&checkpoint(name), Some(&plan)));
    let Err(PlanError::Rejected(rejected)) = mapped else { unreachable!("{mapped:?}") };
    rejected.0
}

/// Source experts by group at one layer.
fn sources(tier: &TierDraft, layer: usize) -> Vec<Vec<u32>> {
    let source = |block: &tpad_publish::DraftBlock| {
        let source = block.source.expect("an expert has a source");
        assert_eq!(source.expert, source.column);
        source.expert
    };
    let groups = &tier.layers[layer].groups;
    groups.iter().map(|group| group.iter().map(source).collect()).collect()
}

fn router(tier: &TierDraft, layer: usize) -> &[TensorRecord] {
    &tier.layers[layer].router.as_ref().expect("a router").tensors
}

#[test]
fn without_a_plan_one_tier_has_the_routers_own_groups() {
    let checkpoint = checkpoint("deepseek_v3");
    let mapping = map(&checkpoint, None).expect("a default mapping");
    let [tier] = &mapping.tiers[..] else { unreachable!("one tier") };
    assert_eq!(tier.id, TierId::Name("base".into()));
    assert_eq!(mapping.default_tier_set, std::slice::from_ref(&tier.id));
    assert_eq!(tier.placement, Placement::ObjectStore);
    assert_eq!(tier.parameter_budget, None);
    assert_eq!(tier.routing, Routing { k_tier: 1, k_group: 1, k_expert: 2 });
    assert_eq!(tier.quantization.as_deref(), Some("fp8_block"));
    for layer in 0..2 {
        assert_eq!(sources(tier, layer), [vec![0, 1], vec![2, 3]]);
        let whole: Vec<_> = checkpoint.layers[layer].router.iter().map(|t| &t.record).collect();
        assert_eq!(router(tier, layer).iter().collect::<Vec<_>>(), whole);
    }
    assert_eq!(mapping.dense, checkpoint.dense);
}

#[test]
fn without_the_number_of_experts_per_token_a_plan_must_give_it() {
    let fixture = Fixture::load("deepseek_v3").set("num_experts_per_tok", Value::Null);
    let checkpoint = recognise(&fixture.tensors, &fixture.config).expect("a known layout");
    assert_eq!(map(&checkpoint, None), Err(PlanError::NoExpertsPerToken));
    let plan = |more: &str| {
        let text = format!("[[tiers]]\nid = 1\n{more}\n[[tiers.groups]]\nexperts = \"0-3\"\n");
        map(&checkpoint, Some(&Plan::parse(&text).expect("a plan")))
    };
    let Err(PlanError::Rejected(rejected)) = plan("") else { unreachable!() };
    assert_eq!(rejected.0[0].place, "/tiers/0/k_expert");
    assert_eq!(plan("k_expert = 3").expect("a plan").tiers[0].routing.k_expert, 3);
}

const THREE: &str = r#"
default_tier_set = [7, "tier_b"]

[[tiers]]
id = 7
placement = "hbm"
parameter_budget = "0.5K"
k_tier = 2
k_group = 1
k_expert = 1
[[tiers.groups]]
experts = "3"

[[tiers]]
id = "tier_b"
placement = "dram"
parameter_budget = 1000
[[tiers.groups]]
experts = "2"
layers = { 2 = "0" }
[[tiers.groups]]
experts = "0-1"
layers = { 2 = "1-2" }
"#;

#[test]
fn a_plan_sorts_experts_into_unequal_groups_and_may_differ_by_layer() {
    let mapping = planned("deepseek_v3", THREE);
    assert_eq!(mapping.default_tier_set, [TierId::Number(7), TierId::Name("tier_b".into())]);
    let [seven, b] = &mapping.tiers[..] else { unreachable!("two tiers") };
    assert_eq!((sources(seven, 0), sources(b, 0)), (vec![vec![3]], vec![vec![2], vec![0, 1]]));
    assert_eq!((sources(seven, 1), sources(b, 1)), (vec![vec![3]], vec![vec![0], vec![1, 2]]));
    assert_eq!((seven.placement, b.placement), (Placement::Hbm, Placement::Dram));
    assert_eq!((seven.parameter_budget, b.parameter_budget), (Some(500), Some(1000)));
    assert_eq!(seven.routing, Routing { k_tier: 2, k_group: 1, k_expert: 1 });
    assert_eq!(b.routing, Routing { k_tier: 2, k_group: 2, k_expert: 2 }, "the defaults");
}

#[test]
fn a_router_is_cut_into_the_rows_of_the_tiers_experts() {
    let checkpoint = checkpoint("deepseek_v3");
    let mapping = planned("deepseek_v3", THREE);
    let whole = &checkpoint.layers[0].router[0].record.ranges[0];
    let at = |row: u64, rows: u64| ByteRange {
        object: whole.object.clone(),
        offset: whole.offset + 8 * row,
        bytes: 8 * rows,
    };
    let seven = &router(&mapping.tiers[0], 0)[0];
    assert_eq!((&seven.shape[..], &seven.ranges[..]), (&[1, 4][..], &[at(3, 1)][..]));
    let b = &router(&mapping.tiers[1], 0)[0];
    assert_eq!((&b.shape[..], &b.ranges[..]), (&[3, 4][..], &[at(2, 1), at(0, 2)][..]));
    let bias = &router(&mapping.tiers[1], 1)[1];
    let whole = &checkpoint.layers[1].router[1].record.ranges[0];
    assert_eq!(bias.shape, [3]);
    assert_eq!(bias.ranges.len(), 1, "rows that follow one another share a range");
    assert_eq!((bias.ranges[0].offset, bias.ranges[0].bytes), (whole.offset, 12));
}

#[test]
fn a_correction_bias_of_one_row_is_cut_along_its_columns() {
    let mapping = planned(
        "ernie4_5_moe",
        "[[tiers]]\nid = 0\n[[tiers.groups]]\nexperts = \"1\"\n\
         [[tiers]]\nid = 1\n[[tiers.groups]]\nexperts = \"0\"\n",
    );
    let bias = &router(&mapping.tiers[0], 0)[1];
    assert_eq!(bias.shape, [1, 1]);
    assert_eq!(bias.ranges[0].bytes, 4);
    assert_eq!(bias.ranges[0].offset, router(&mapping.tiers[1], 0)[1].ranges[0].offset + 4);
}

#[test]
fn all_problems_of_a_plan_are_reported_at_once() {
    let plan = r#"
default_tier_set = ["nobody", 1]
[[tiers]]
id = 1
parameter_budget = "lots"
k_expert = 0
[[tiers.groups]]
experts = "zero"
layers = { one = "1" }
[[tiers]]
id = "1"
groups = []
"#;
    let places: Vec<String> = problems("mixtral", plan).into_iter().map(|p| p.place).collect();
    let expected = [
        "/tiers/0/k_expert",
        "/tiers/0/parameter_budget",
        "/tiers/0/groups/0/experts",
        "/tiers/0/groups/0/layers/one",
        "/tiers/1/groups",
        "/tiers/1/id",
        "/default_tier_set/0",
    ];
    assert_eq!(places, expected);
}

#[test]
fn all_misfits_of_a_plan_are_reported_at_once() {
    let plan = r#"
[unused]
experts = "0"
[[tiers]]
id = "a"
parameter_budget = 1
k_group = 3
k_tier = 4
[[tiers.groups]]
experts = "0-1"
layers = { 9 = "0-1", 2 = "2" }
[[tiers]]
id = "b"
k_expert = 2
[[tiers.groups]]
experts = "4"
"#;
    let found = problems("deepseek_v3", plan);
    let text: Vec<String> = found.iter().map(Problem::to_string).collect();
    let expected = [
        "/tiers/0/groups/0/layers/9: layer 9 is no MoE layer of the checkpoint",
        "/tiers/1/groups/0/experts: there is no expert 4: the checkpoint has 4, from 0",
        "/unused/experts: 0 are in tier a, group 0 already",
        "/tiers: layer 1: experts 2-3 are in no tier; name them in [unused] if that is meant",
        "/tiers/0/groups/0/layers/2: 1 experts, but the group has 2 at other layers",
        "/tiers/1/groups/0/experts: there is no expert 4: the checkpoint has 4, from 0",
        "/tiers: layer 2: experts 1, 3 are in no tier; name them in [unused] if that is meant",
        "/tiers/0/k_tier: 4 of 2 tiers",
        "/tiers/0/k_group: 3 of 1 groups",
        "/tiers/0/parameter_budget: the tier's experts have 216 parameters, 215 more",
        "/tiers/1/k_expert: 2 of 1 experts",
    ];
    assert_eq!(text, expected);
}

#[test]
fn unknown_keys_and_wrong_types_are_refused() {
    let group = "[[tiers.groups]]\nexperts = \"0-1\"\n";
    for (text, named) in [
        (format!("speed = 1\n[[tiers]]\nid = 1\n{group}"), "speed"),
        (format!("[[tiers]]\nid = 1\nk_experts = 2\n{group}"), "k_experts"),
        (format!("[[tiers]]\n{group}"), "id"),
        (format!("[[tiers]]\nid = -1\n{group}"), "a tier id, an integer from 0 or a string"),
        (format!("[[tiers]]\nid = 1\nplacement = \"tape\"\n{group}"), "tape"),
        (format!("[[tiers]]\nid = 1\nparameter_budget = 1.5\n{group}"), "10B"),
        ("[[tiers]]\nid = 1\n[[tiers.groups]]\nexpert = \"0\"\n".into(), "expert"),
        ("[unused]\nall = true\n".into(), "all"),
        ("tiers = [".into(), "array"),
    ] {
        let error = Plan::parse(&text).expect_err("it must be refused");
        assert!(matches!(error, PlanError::Syntax(_)), "{text}");
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
    assert!(Plan::parse("").is_err(), "a plan without tiers");
    let twice = format!("[[tiers]]\nid = 1\n{group}[[tiers]]\nid = 1\n{group}");
    assert!(matches!(Plan::parse(&twice), Err(PlanError::Rejected(_))));
    let slash = format!("[[tiers]]\nid = \"a/b\"\n{group}");
    assert!(matches!(Plan::parse(&slash), Err(PlanError::Rejected(_))));
}

#[test]
fn experts_that_are_declared_unused_may_stay_out() {
    let mapping = planned(
        "deepseek_v3",
        "[unused]\nexperts = \"0,2-3\"\n[[tiers]]\nid = 1\n[[tiers.groups]]\nexperts = \"1\"\n",
    );
    assert_eq!(sources(&mapping.tiers[0], 0), [[1]]);
    assert_eq!(router(&mapping.tiers[0], 0)[0].shape, [1, 4]);
    assert_eq!(mapping.tiers[0].routing.k_expert, 1, "no more than the tier has");
}

#[test]
fn rows_that_score_no_expert_go_with_a_tier_that_has_all_and_else_nowhere() {
    let one =
        "[[tiers]]\nid = 1\n[[tiers.groups]]\nexperts = \"0\"\n[[tiers.groups]]\nexperts = \"1\"\n";
    assert_eq!(router(&planned("longcat", one).tiers[0], 0)[0].shape, [3, 4]);
    let two = "[[tiers]]\nid = 1\n[[tiers.groups]]\nexperts = \"0\"\n\
               [[tiers]]\nid = 2\n[[tiers.groups]]\nexperts = \"1\"\n";
    let found = problems("longcat", two);
    assert!(found[0].message.contains("has 3 rows for 2 experts"), "{found:?}");
}

#[test]
fn a_router_whose_rows_are_no_bytes_is_not_cut() {
    let fixture = Fixture::load("fp8_block")
        .without("model.layers.0.mlp.gate.weight")
        .with("model.layers.0.mlp.gate.weight F8_E4M3 2x4")
        .with("model.layers.0.mlp.gate.weight_scale_inv F32 1x2");
    let checkpoint = recognise(&fixture.tensors, &fixture.config).expect("a known layout");
    assert!(map(&checkpoint, None).is_ok(), "whole routers are served as they are");
    let plan = |text| map(&checkpoint, Some(&Plan::parse(text).expect("a plan")));
    let order = "[[tiers]]\nid = 1\n[[tiers.groups]]\nexperts = \"1,0\"\n";
    let Err(PlanError::Rejected(rejected)) = plan(order) else { unreachable!() };
    assert!(
        rejected.0.iter().any(|p| p.message.contains("gate.weight is quantized")),
        "{rejected}"
    );
    assert!(plan("[[tiers]]\nid = 1\n[[tiers.groups]]\nexperts = \"0-1\"\n").is_ok());
}

/// A partition of 12 experts into tiers and groups, in any order; experts
/// beyond the last group are unused.
fn partition() -> impl Strategy<Value = (Vec<Vec<Vec<u32>>>, Vec<u32>)> {
    let order = Just((0..12).collect::<Vec<u32>>()).prop_shuffle();
    let sizes = prop::collection::vec(prop::collection::vec(1usize..5, 1..3), 1..4);
    (order, sizes).prop_map(|(order, sizes)| {
        let mut rest = order.into_iter();
        let mut tiers: Vec<Vec<Vec<u32>>> = Vec::new();
        for sizes in sizes {
            let groups = sizes.into_iter().map(|size| rest.by_ref().take(size).collect());
            let groups: Vec<Vec<u32>> =
                groups.filter(|group: &Vec<u32>| !group.is_empty()).collect();
            tiers.extend((!groups.is_empty()).then_some(groups));
        }
        (tiers, rest.collect())
    })
}

fn list(experts: &[u32]) -> String {
    experts.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

proptest! {
    /// A plan's routers and experts, read from bytes, against rows picked one
    /// by one.
    #[test]
    fn cut_routers_hold_the_rows_of_their_experts((tiers, unused) in partition()) {
        let fixture = Fixture::parse(
            "config {\"num_experts_per_tok\": 1, \"scoring_func\": \"sigmoid\"}\n\
             tensor model.layers.4.mlp.experts.{0..11}.{gate,up}_proj.weight BF16 6x4\n\
             tensor model.layers.4.mlp.experts.{0..11}.down_proj.weight BF16 4x6\n\
             tensor model.layers.4.mlp.gate.weight F32 12x4\n\
             tensor model.layers.4.mlp.gate.e_score_correction_bias F32 12",
        );
        let end = fixture.tensors.iter().map(|t| t.offset + t.bytes).max().expect("tensors");
        let bytes: Vec<u8> =
            (0..end).flat_map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect();
        let slice = |offset: u64, len: u64| -> Vec<u8> {
            let place = |at: u64| usize::try_from(at).expect("small");
            bytes[place(offset)..][..place(len)].to_vec()
        };
        let read = |record: &TensorRecord| -> Vec<u8> {
            record.ranges.iter().flat_map(|range| slice(range.offset, range.bytes)).collect()
        };
        let mut plan = String::new();
        if !unused.is_empty() {
            plan.push_str(&format!("[unused]\nexperts = \"{}\"\n", list(&unused)));
        }
        for (n, groups) in tiers.iter().enumerate() {
            plan.push_str(&format!("[[tiers]]\nid = {n}\n"));
            for group in groups {
                plan.push_str(&format!("[[tiers.groups]]\nexperts = \"{}\"\n", list(group)));
            }
        }
        let plan = Plan::parse(&plan).expect("a plan");
        let checkpoint = recognise(&fixture.tensors, &fixture.config).expect("a layout");
        let mapping = map(&checkpoint, Some(&plan)).expect("a plan that fits");
        prop_assert_eq!(mapping.tiers.len(), tiers.len());
        let find = |name: &str| fixture.tensors.iter().find(|t| &*t.name == name).expect("there");
        for (tier, groups) in mapping.tiers.iter().zip(&tiers) {
            prop_assert_eq!(&sources(tier, 0), groups);
            for (block, expert) in
                tier.layers[0].groups.iter().flatten().zip(groups.iter().flatten())
            {
                for record in &block.tensors {
                    let mark = format!(".experts.{expert}.");
                    prop_assert!(record.name.contains(&mark), "{} is of {}", record.name, expert);
                    let whole = find(&record.name);
                    prop_assert_eq!(read(record), slice(whole.offset, whole.bytes));
                }
            }
            let weight = find("model.layers.4.mlp.gate.weight");
            let bias = find("model.layers.4.mlp.gate.e_score_correction_bias");
            for (record, whole, row) in
                [(&router(tier, 0)[0], weight, 16), (&router(tier, 0)[1], bias, 4)]
            {
                let rows = groups.iter().flatten();
                let expected: Vec<u8> = rows
                    .flat_map(|expert| slice(whole.offset + row * u64::from(*expert), row))
                    .collect();
                prop_assert_eq!(read(record), expected);
                prop_assert_eq!(record.bytes().ok(), Some(record.ranges.iter().map(|r| r.bytes).sum()));
                let joined = record.ranges.windows(2).any(|r| r[0].offset + r[0].bytes == r[1].offset);
                prop_assert!(!joined, "ranges that touch are one");
            }
        }
    }

    /// Whatever text a plan is, it is read or refused, and lists of any length
    /// cost nothing.
    #[test]
    fn any_plan_is_read_or_refused(
        experts in "[0-9,\\- ]{0,24}",
        other in "(0-4294967295,){0,3}[0-9]{1,10}",
        budget in "[0-9.KMBT]{0,12}",
    ) {
        let text = format!(
            "[[tiers]]\nid = 1\nparameter_budget = \"{budget}\"\n[[tiers.groups]]\nexperts = \"{experts}\"\n\
             [[tiers.groups]]\nexperts = \"{other}\"\nlayers = {{ 0 = \"{experts}\" }}\n",
        );
        if let Ok(plan) = Plan::parse(&text) {
            let _ = map(&checkpoint("mixtral"), Some(&plan));
        }
    }
}

#[test]
fn scoring_and_layers_come_from_the_checkpoint() {
    let fixture = Fixture::load("deepseek_v3").set("routed_scaling_factor", json!(3.0));
    let checkpoint = recognise(&fixture.tensors, &fixture.config).expect("a known layout");
    let mapping = map(&checkpoint, None).expect("a default mapping");
    assert_eq!(mapping.scoring, checkpoint.scoring);
    assert!((mapping.scoring.scale - 3.0).abs() < f64::EPSILON);
    let layers: Vec<u32> = mapping.layers.iter().map(|layer| layer.layer).collect();
    assert_eq!(layers, [1, 2]);
}

#[test]
fn groups_are_scored_as_the_family_does() {
    let scored = |name: &str, edits: &[(&str, serde_json::Value)]| {
        let fixture = edits
            .iter()
            .fold(Fixture::load(name), |fixture, (key, value)| fixture.set(key, value.clone()));
        recognise(&fixture.tensors, &fixture.config).expect("a known layout").scoring.groups
    };
    let without = ("topk_method", serde_json::Value::Null);
    assert_eq!(scored("deepseek_v2", &[]), GroupScoring::Max);
    assert_eq!(scored("deepseek_v2", std::slice::from_ref(&without)), GroupScoring::Max);
    assert_eq!(scored("deepseek_v3", &[]), GroupScoring::TopTwoSum);
    assert_eq!(scored("deepseek_v3", &[without]), GroupScoring::TopTwoSum, "it has the bias");
    let one = [("n_group", json!(1))];
    assert_eq!(scored("deepseek_v3", &one), GroupScoring::LogSumExp, "there are no groups");
    assert_eq!(scored("deepseek_v2_lite", &[]), GroupScoring::LogSumExp, "greedy knows no groups");
    assert_eq!(scored("mixtral", &[]), GroupScoring::LogSumExp);
}

#[test]
fn tier_sets_of_a_plan_reach_the_mapping() {
    let sets = "[tier_sets]\nsmall = [\"a\"]\nboth = [7, \"a\"]\n";
    let tiers = "[[tiers]]\nid = \"a\"\n[[tiers.groups]]\nexperts = \"0-1\"\n\
                 [[tiers]]\nid = 7\n[[tiers.groups]]\nexperts = \"2-3\"\n";
    let plan = Plan::parse(&format!("{sets}{tiers}")).expect("a plan");
    let fixture = Fixture::load("deepseek_v3");
    let checkpoint = recognise(&fixture.tensors, &fixture.config).expect("a known layout");
    let mapping = map(&checkpoint, Some(&plan)).expect("it fits");
    let (a, seven) = (TierId::Name("a".into()), TierId::Number(7));
    let expected =
        [("both".to_owned(), vec![seven, a.clone()]), ("small".to_owned(), vec![a])].into();
    assert_eq!(mapping.tier_sets, expected);

    for (sets, place) in [
        ("[tier_sets]\nx = [\"b\"]\n", "/tier_sets/x/0"),
        ("[tier_sets]\nx = [7, 7]\n", "/tier_sets/x/1"),
        ("[tier_sets]\n\"no good\" = [7]\n", "/tier_sets/no good"),
    ] {
        let error = Plan::parse(&format!("{sets}{tiers}")).expect_err(sets).to_string();
        assert!(error.contains(place), "{error}");
    }
}

#[test]
fn the_documented_plan_is_one() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/import.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let (_, rest) = page.split_once("```toml\n").expect("an example");
    let (text, _) = rest.split_once("```").expect("its end");
    let plan = Plan::parse(text).expect("a plan");
    let mut tensors = String::from("config {\"num_experts_per_tok\": 4}\n");
    for layer in [11, 12] {
        tensors.push_str(&format!(
            "tensor model.layers.{layer}.mlp.experts.{{0..63}}.{{gate,up,down}}_proj.weight BF16 4x4\n\
             tensor model.layers.{layer}.mlp.gate.weight BF16 64x4\n",
        ));
    }
    let fixture = Fixture::parse(&tensors);
    let checkpoint = recognise(&fixture.tensors, &fixture.config).expect("a known layout");
    let mapping = map(&checkpoint, Some(&plan)).expect("it fits 64 experts");
    assert_eq!(sources(&mapping.tiers[0], 1), [vec![0, 1, 2, 3, 7], vec![8, 9, 10]]);
}
