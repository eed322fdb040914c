//! What adding a tier asks of its parent besides the expansion contract, and what
//! it does not ask of the checkpoint.

#[expect(dead_code, reason = "the tests of growth use the rest")]
#[path = "grow/model.rs"]
mod model;
#[expect(dead_code, reason = "the tests of growth use the rest")]
#[path = "grow/tier.rs"]
mod tier;

use std::fs;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tpad_manifest::{Placement, Routing};
use tpad_publish::{GrowError, GrowOptions, Grown, Silent, add_tier};
use tpad_store::ErrorKind;

use crate::model::{Model, origin};
use crate::tier::TierSpec;

async fn grow(root: &Path, from: &Path) -> Result<Grown, GrowError> {
    let options = GrowOptions {
        id: "big".parse().expect("an id"),
        plan: None,
        budget: 1_000_000,
        placement: Placement::Dram,
        routing: Routing { k_tier: 1, k_group: 1, k_expert: 2 },
        dry_run: false,
        retention: SignedDuration::from_hours(24),
        now: Timestamp::now(),
    };
    let stop = CancellationToken::new();
    add_tier(&origin(root), &origin(from), &options, &Silent, &stop).await
}

async fn published() -> (Model, TierSpec) {
    let model = Model::fixture("mixtral");
    model.import().await;
    (model, TierSpec::new("big", &[0, 1], &[2, 3], 64, 32))
}

fn edit(model: &Model, edit: impl FnOnce(&mut Value)) {
    let path = model.path().join("tpad/revisions/1.json");
    let mut document = serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
    edit(&mut document);
    fs::write(&path, document.to_string()).expect("written");
}

#[tokio::test]
async fn a_parent_of_unknown_scoring_gets_no_tier_and_the_remedy_is_told() {
    for field in ["function", "groups"] {
        let (model, tier) = published().await;
        edit(&model, |document| document["scoring"][field] = json!("of_a_later_version"));
        let before = model.files();
        let from = tier.write();
        let error = grow(model.path(), from.path()).await.expect_err("refused");
        assert!(matches!(error, GrowError::Scoring { .. }), "{field}: {error}");
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.to_string().contains("tpactl publish --major"), "{error}");
        assert!(model.files() == before, "{field}: something was written");
    }
}

#[tokio::test]
async fn a_checkpoint_that_is_named_for_its_tier_needs_no_config() {
    let (model, tier) = published().await;
    let from = tier.write();
    assert!(!from.path().join("config.json").exists());
    let grown = grow(model.path(), from.path()).await.expect("grown");
    assert_eq!(grown.notes, Vec::<String>::new());
}
