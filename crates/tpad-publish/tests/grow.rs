//! Growth by tiers: what exists stays as it is, to the byte, and whatever would
//! change it is refused by name.

#[path = "grow/model.rs"]
mod model;
#[path = "grow/tier.rs"]
mod tier;

use std::fs;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Change, Effect, Placement, Routing};
use tpad_publish::{
    AmendOptions, Amended, Amendment, GrowError, GrowOptions, GrowOutcome, Grown, Plan, Revision,
    Silent, add_tier, amend, changes, check,
};
use tpad_store::{ErrorKind, OriginOptions};

use crate::model::{Model, origin};
use crate::tier::{TierSpec, bf16};

fn options(id: &str) -> GrowOptions {
    GrowOptions {
        id: id.parse().expect("an id"),
        plan: None,
        budget: 1_000_000,
        placement: Placement::Dram,
        routing: Routing { k_tier: 2, k_group: 1, k_expert: 2 },
        dry_run: false,
        retention: SignedDuration::from_hours(24),
        now: "2026-12-01T08:00:00Z".parse().expect("a time"),
    }
}

async fn grow(root: &Path, from: &Path, options: &GrowOptions) -> Result<Grown, GrowError> {
    let stop = CancellationToken::new();
    add_tier(&origin(root), &origin(from), options, &Silent, &stop).await
}

async fn revision(root: &Path, number: u64) -> Revision {
    let url = root.join(format!("tpad/revisions/{number}.json"));
    let url = url.to_str().expect("text");
    Revision::open(url, &OriginOptions::default()).await.expect("a revision")
}

async fn problems(root: &Path) -> Vec<String> {
    let url = root.to_str().expect("text");
    let revision = Revision::open(url, &OriginOptions::default()).await.expect("a revision");
    let checked = check(&revision, &Silent, &CancellationToken::new()).await.expect("checked");
    checked.problems.iter().map(ToString::to_string).collect()
}

fn document(root: &Path, number: u64) -> Value {
    let path = root.join(format!("tpad/revisions/{number}.json"));
    serde_json::from_slice(&fs::read(path).expect("a revision")).expect("JSON")
}

/// A Mixtral with a revision, and a checkpoint that brings it a tier.
async fn published() -> (Model, TierSpec) {
    let model = Model::fixture("mixtral");
    model.import().await;
    (model, TierSpec::new("big", &[0, 1], &[2, 3], 64, 32))
}

#[tokio::test]
async fn a_grown_model_keeps_every_record_and_digest_of_its_parent() {
    let (model, tier) = published().await;
    let from = tier.write();
    let before = model.files();
    let grown = grow(model.path(), from.path(), &options("big")).await.expect("grown");
    assert_eq!((grown.outcome, grown.manifest.revision), (GrowOutcome::Written, 2));
    assert_eq!(grown.parameters, 2 * 5 * 3 * 64 * 32);
    assert_eq!(grown.blocks, 2 * (5 + 1));
    let after = model.files();
    for (path, bytes) in &before {
        assert!(after.get(path) == Some(bytes), "{path} changed");
    }
    let (old, new) = (document(model.path(), 1), document(model.path(), 2));
    let tiers = |of: &Value| of["tiers"].as_array().expect("tiers").clone();
    assert_eq!(tiers(&new)[..tiers(&old).len()], tiers(&old)[..]);
    for field in ["dense", "default_tier_set", "layers", "scoring", "files", "model"] {
        assert_eq!(old[field], new[field], "{field}");
    }
    let digest = blake3::hash(&before["tpad/revisions/1.json"]).to_hex();
    assert_eq!(new["parent"], digest.as_str());
    assert_eq!((&old["model_version"], &new["model_version"]), (&"1.0".into(), &"1.1".into()));
    assert_eq!(new["created_at"], "2026-12-01T08:00:00Z");
    let added = tiers(&new).pop().expect("a tier");
    assert_eq!((&added["id"], &added["placement"]), (&"big".into(), &"dram".into()));
    assert_eq!(
        (&added["created_at"], &added["parameter_budget"]),
        (&new["created_at"], &1_000_000.into())
    );
    let seen = changes(&revision(model.path(), 1).await, &revision(model.path(), 2).await).await;
    assert_eq!(
        seen.expect("compared").list(),
        [Change::TierAdded { tier: "big".parse().expect("an id") }]
    );
    assert_eq!(problems(model.path()).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_second_run_finds_the_tier_and_another_tier_may_not_have_its_id() {
    let (model, tier) = published().await;
    let from = tier.write();
    grow(model.path(), from.path(), &options("big")).await.expect("grown");
    let files = model.files();
    let mut again = options("big");
    again.placement = Placement::Nvme;
    let same = grow(model.path(), from.path(), &again).await.expect("it is there");
    assert_eq!((same.outcome, same.manifest.revision), (GrowOutcome::Unchanged, 2));
    assert!(same.notes.iter().any(|note| note.contains("set-placement")), "{:?}", same.notes);
    let other = TierSpec { seed: 9, ..tier }.write();
    let error = grow(model.path(), other.path(), &options("big")).await.expect_err("taken");
    assert!(matches!(error, GrowError::Taken { .. }), "{error}");
    assert!(error.to_string().contains("choose another --id"), "{error}");
    let mut dry = options("big");
    dry.dry_run = true;
    let error = grow(model.path(), from.path(), &dry).await.expect_err("taken");
    assert!(matches!(error, GrowError::Taken { .. }), "{error}");
    assert_eq!(model.files(), files);
}

#[tokio::test]
async fn a_dry_run_writes_nothing_and_says_what_would_change() {
    let (model, tier) = published().await;
    let from = tier.write();
    let before = model.files();
    let mut dry = options("big");
    dry.dry_run = true;
    let grown = grow(model.path(), from.path(), &dry).await.expect("it could be added");
    assert_eq!((grown.outcome, grown.manifest.revision), (GrowOutcome::DryRun, 2));
    assert_eq!(grown.changes.effect(), Some(Effect::Additive));
    assert_eq!(grown.budget - grown.parameters, 1_000_000 - 2 * 5 * 3 * 64 * 32);
    assert_eq!(model.files(), before);
}

/// What a checkpoint is refused for; nothing is written then.
async fn refused(model: &Model, from: &Path, options: &GrowOptions) -> String {
    let before = model.files();
    let error = grow(model.path(), from, options).await.expect_err("it is refused");
    assert_eq!(model.files(), before, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_missing_router_layer_is_named() {
    let (model, tier) = published().await;
    let drop = |ends: &'static str| {
        tier.write_with(move |tensors| tensors.retain(|tensor| !tensor.name.contains(ends)))
    };
    let without_router = drop("layers.1.router");
    let text = refused(&model, without_router.path(), &options("big")).await;
    assert!(text.contains("layer 1") && text.contains("router"), "{text}");
    let without_layer = drop("layers.1.");
    let text = refused(&model, without_layer.path(), &options("big")).await;
    assert!(text.contains("layer 1: there is no routing head of tier big"), "{text}");
    let surplus = TierSpec::new("big", &[0, 1, 7], &[2, 3], 64, 32).write();
    let text = refused(&model, surplus.path(), &options("big")).await;
    assert!(text.contains("layer 7: the parent has no such MoE layer"), "{text}");
    let without_expert = drop("layers.0.groups.1.experts.3.");
    let text = refused(&model, without_expert.path(), &options("big")).await;
    assert!(text.contains("layer 0") || text.contains("layer 1"), "{text}");
}

#[tokio::test]
async fn more_parameters_than_the_budget_are_refused_with_the_excess() {
    let (model, tier) = published().await;
    let from = tier.write();
    let mut small = options("big");
    small.budget = 2 * 5 * 3 * 64 * 32 - 7;
    let text = refused(&model, from.path(), &small).await;
    assert!(text.contains("61440 logical parameters, 7 more than the budget of 61433"), "{text}");
}

#[tokio::test]
async fn one_flipped_bit_of_what_exists_is_refused_by_name() {
    for (shard, tensor) in [
        ("model-00003-of-00005.safetensors", "model.layers.0.post_attention_layernorm.weight"),
        ("model-00005-of-00005.safetensors", "model.layers.1.block_sparse_moe.gate.weight"),
        ("model-00004-of-00005.safetensors", "model.layers.1.block_sparse_moe.experts.5.w2.weight"),
    ] {
        let (model, tier) = published().await;
        // The whole old model is in the checkpoint, and the new tier besides.
        let grown = Model::fixture("mixtral");
        fs::remove_file(grown.path().join("model.safetensors.index.json")).expect("there");
        tier.write_into(&grown.path().join("model-00006-of-00006.safetensors"));
        for n in 1..6 {
            let name = |of| grown.path().join(format!("model-0000{n}-of-0000{of}.safetensors"));
            fs::rename(name(5), name(6)).expect("renamed");
        }
        let equal = grow(model.path(), grown.path(), &options("big")).await;
        assert_eq!(equal.expect("nothing differs").compared, 2 * (8 + 1) + 15);
        fs::remove_file(model.path().join("tpad/revisions/2.json")).expect("there");
        let shard = shard.replace("of-00005", "of-00006");
        grown.flip(&shard, tensor);
        let text = refused(&model, grown.path(), &options("big")).await;
        assert!(text.contains(&format!("tensor {tensor} in {shard} differ")), "{text}");
        let layer = if tensor.contains("layers.1") { 1 } else { 0 };
        assert!(
            text.contains(&format!("layer {layer}")) || text.contains("dense tensor"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_tensor_that_the_model_does_not_have_is_refused() {
    let (model, tier) = published().await;
    let from =
        tier.write_with(|tensors| tensors.push(bf16("model.layers.0.extra.weight", &[4], 1)));
    let text = refused(&model, from.path(), &options("big")).await;
    assert!(text.contains("model.layers.0.extra.weight: the parent has no such tensor"), "{text}");
}

#[tokio::test]
async fn what_an_earlier_run_uploaded_is_used_again_until_it_is_old() {
    let (model, tier) = published().await;
    let from = tier.write();
    let now: Timestamp = Timestamp::now();
    let run = async |hours: i64| {
        let mut options = options("big");
        options.now = now + SignedDuration::from_hours(hours);
        let grown = grow(model.path(), from.path(), &options).await.expect("grown");
        fs::remove_file(model.path().join("tpad/revisions/2.json")).expect("there");
        grown.reused_bytes
    };
    assert_eq!(run(0).await, 0);
    let reused = run(1).await;
    assert!(reused > 2 * 5 * 3 * 64 * 32 * 2, "{reused}");
    assert_eq!(run(11).await, reused, "less than half of the 24 hours");
    assert_eq!(run(13).await, 0, "more than half of them");
    // Of another size, it is not what its name says.
    let shards = model.files();
    let shard = shards.keys().find(|path| path.starts_with("tpad/shards/")).expect("a shard");
    fs::write(model.path().join(shard), b"torn").expect("written");
    assert_eq!(run(1).await, 0);
    assert_eq!(shards[shard], model.files()[shard]);
}

#[tokio::test]
async fn heads_of_its_own_are_part_of_the_router_and_asked_of_readers() {
    let (model, tier) = published().await;
    let from = tier.write_with(|tensors| {
        for layer in 0..2 {
            let name = |head| format!("tpad_tiers.big.layers.{layer}.{head}.weight");
            tensors.push(bf16(&name("tier_head"), &[1, 64], 3));
            tensors.push(bf16(&name("group_heads"), &[2, 64], 4));
        }
    });
    grow(model.path(), from.path(), &options("big")).await.expect("grown");
    let new = document(model.path(), 2);
    let requires = &new["tiers"][1]["compatibility"]["requires"];
    assert_eq!(*requires, serde_json::json!(["group_heads", "tier_head"]));
    assert_eq!(problems(model.path()).await, Vec::<String>::new());
}

#[tokio::test]
async fn any_checkpoint_brings_a_tier_and_a_plan_tells_old_from_new() {
    let (model, _) = published().await;
    // The same model with experts 0 to 7 old: all of them "new" here, which is
    // legal, since nothing says that they exist.
    let all = Model::fixture("mixtral");
    let grown = grow(model.path(), all.path(), &options("copy")).await.expect("grown");
    assert_eq!(grown.manifest.tiers[1].groups[0].experts, 8);
    // With a plan, experts 0 to 5 are the model's and compared with it.
    let plan = "[unused]\nexperts = \"0-5\"\n[[tiers]]\nid = \"some\"\n[[tiers.groups]]\n\
                experts = \"6-7\"\n";
    let plan = Plan::parse(plan).expect("a plan");
    let mut some = options("some");
    some.plan = Some(plan);
    let text = refused(&model, all.path(), &some).await;
    assert!(text.contains("some of its experts and not 6"), "{text}");
}

async fn change(model: &Model, amendment: Amendment, major: bool) -> Result<Amended, GrowError> {
    let now = "2026-12-02T08:00:00Z".parse().expect("a time");
    let options = AmendOptions { major, dry_run: false, now };
    amend(&origin(model.path()), &amendment, &options).await
}

#[tokio::test]
async fn placements_and_budgets_are_metadata() {
    let (model, tier) = published().await;
    grow(model.path(), tier.write().path(), &options("big")).await.expect("grown");
    let id = || "big".parse().expect("an id");
    let placed = Amendment::Placement { tier: id(), placement: Placement::ObjectStore };
    let placed = change(&model, placed.clone(), false).await.expect("placed");
    assert_eq!((placed.outcome, placed.manifest.revision), (GrowOutcome::Written, 3));
    assert_eq!(placed.changes.effect(), Some(Effect::Metadata));
    assert_eq!(placed.manifest.model_version.to_string(), "1.1");
    let content = 2 * 5 * 3 * 64 * 32;
    let budget = |budget| Amendment::Budget { tier: id(), budget };
    let lowered = change(&model, budget(content), false).await.expect("no less than its content");
    assert_eq!(lowered.manifest.tiers[1].parameter_budget, content);
    let same = change(&model, budget(content), false).await.expect("nothing to do");
    assert_eq!((same.outcome, same.manifest.revision), (GrowOutcome::Unchanged, 4));
    let error =
        change(&model, budget(content - 1), false).await.expect_err("less than its content");
    assert!(error.to_string().contains("tier big: its experts have 61440"), "{error}");
    assert!(error.to_string().contains("1 more than the budget of 61439"), "{error}");
    let unknown = Amendment::Budget { tier: "none".parse().expect("an id"), budget: 1 };
    let error = change(&model, unknown, false).await.expect_err("no such tier");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(document(model.path(), 2)["tiers"][1]["placement"], "dram", "what was stays");
    assert_eq!(problems(model.path()).await, Vec::<String>::new());
}

#[tokio::test]
async fn breaking_edits_are_listed_and_need_a_major_version() {
    let (model, tier) = published().await;
    grow(model.path(), tier.write().path(), &options("big")).await.expect("grown");
    let mut edited = document(model.path(), 2);
    edited["tiers"][1]["routing"]["k_expert"] = 1.into();
    edited["tiers"][1]["routing"]["k_tier"] = 1.into();
    edited["default_tier_set"] = serde_json::json!(["big"]);
    let document_of = |value: &Value| Amendment::Document { text: value.to_string().into() };
    let error = change(&model, document_of(&edited), false).await.expect_err("it breaks");
    let text = error.to_string();
    for violation in ["k_expert was 2 and is 1", "k_tier was 2 and is 1", "default_tier_set: was"] {
        assert!(text.contains(violation), "{text}");
    }
    let major = change(&model, document_of(&edited), true).await.expect("announced");
    assert_eq!(major.manifest.model_version.to_string(), "2.0");
    assert_eq!((major.manifest.revision, major.from.to_string()), (3, "1.1".to_owned()));
    // The same edit of a document that is no longer the newest.
    let error = change(&model, document_of(&edited), true).await.expect_err("it is of revision 2");
    assert!(error.to_string().contains("made from revision 2, and the newest is 3"), "{error}");
    let mut removed = document(model.path(), 3);
    removed["default_tier_set"] = serde_json::json!([removed["tiers"][0]["id"]]);
    removed["tiers"].as_array_mut().expect("tiers").pop();
    let error = change(&model, document_of(&removed), false).await.expect_err("a tier is gone");
    assert!(error.to_string().contains("tier big: the tier is gone"), "{error}");
    let gone = change(&model, document_of(&removed), true).await.expect("announced");
    assert_eq!(gone.manifest.model_version.to_string(), "3.0");
    // An index that is not there is refused whatever the version.
    let mut lost = document(model.path(), 4);
    lost["tiers"][0]["index"]["digest"] = "00".repeat(32).into();
    let error = change(&model, document_of(&lost), true).await.expect_err("no such index");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}
