//! A `tpad` of an earlier commit on a revision that today's `tpactl` wrote:
//! `cargo xtask compat` brings the program.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tpad_client::{Client, FetchDense, FetchExperts, FetchRouters, FetchedBlock, GetMask, Kind};
use tpad_manifest::{BlockKey, TierSet};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::compare::{collect, exact};
use tpad_tests::process::Process;
use tpad_tests::reference::Reference;
use tpad_tests::scene::play;
use tpad_tests::shards;

fn early() -> PathBuf {
    let program = std::env::var_os("TPAD_TEST_EARLY");
    program.map(PathBuf::from).expect("TPAD_TEST_EARLY names it: run `cargo xtask compat`")
}

fn run(args: &[&str]) {
    let output = tpactl().args(args).output().expect("it runs");
    assert!(output.status.success(), "{args:?}: {}", said(&output));
}

fn add(root: &str, id: &str, from: &Path) {
    let from = from.to_str().expect("text");
    let home = ["--budget", "1M", "--placement", "dram", "--k-expert", "2"];
    run(&[&["tier", "add", root, "--id", id, "--from", from][..], &home].concat());
}

async fn fetch(client: &Client, tier: &str) -> Vec<FetchedBlock> {
    let (model, tiers) = ("mixtral".to_owned(), vec![tier.to_owned()]);
    let request = FetchExperts { model, tiers, ..FetchExperts::default() };
    collect(client.fetch_experts(request).await).await.into_values().collect()
}

/// Everything of the tiers that the early program knows, against the originals.
async fn is_exact(client: &Client, original: &Reference) {
    let base = fetch(client, "base").await;
    assert_eq!(base.len(), original.experts.len());
    for block in &base {
        let BlockKey::Expert { key, layer } = &block.key else { unreachable!("an expert") };
        exact(block, &original.experts[&(*layer, key.expert)]);
    }
    let added = fetch(client, "plain").await;
    assert_eq!(added.len(), 2 * 5);
    let (model, tiers) = ("mixtral".to_owned(), vec!["base".to_owned(), "plain".to_owned()]);
    let request = FetchRouters { model, tiers, layers: Vec::new() };
    let routers = collect(client.fetch_routers(request).await).await;
    assert_eq!(routers.len(), 2 * 2);
    for block in added.iter().chain(routers.values()) {
        match &block.key {
            BlockKey::Router { tier, layer } if tier.to_string() == "base" => {
                exact(block, &original.routers[layer]);
            }
            _ => {
                for tensor in &block.tensors {
                    assert!(tensor.name.starts_with("tpad_tiers.plain."), "{}", tensor.name);
                    let content = shards::content(&tensor.name, tensor.bytes.len() as u64);
                    assert!(tensor.bytes == content, "{}", tensor.name);
                }
            }
        }
    }
    let request = FetchDense { model: "mixtral".into(), names: Vec::new() };
    let dense = collect(client.fetch_dense(request).await).await;
    assert_eq!(dense.len(), original.dense.len());
    for (key, block) in &dense {
        let BlockKey::Dense { name } = key else { unreachable!("a dense tensor") };
        let tensor = (name.to_string(), original.dense[&**name].clone());
        exact(block, &[tensor].into());
    }
}

#[test]
fn an_early_program_serves_a_grown_model_but_the_tier_that_it_cannot_know() {
    play(async |scene| {
        let original = fixture("mixtral");
        let checkpoint =
            Checkpoint::import(&original, Store::Directory, scene.directory(), None).await;
        let original = Reference::read(&original);
        let (plain, headed) = (scene.directory().join("plain"), scene.directory().join("headed"));
        shards::tier(&plain, "plain", &[0, 1], &[2, 3], [64, 32]);
        shards::tier_with_heads(&headed, "headed", &[0, 1], &[4], [64, 32]);
        add(&checkpoint.root, "plain", &plain);
        add(&checkpoint.root, "headed", &headed);

        let config = format!("{}[levels.dram]\ncapacity = \"16MiB\"\n", checkpoint.section());
        let now = Process::serve(scene.directory(), &config).await;
        let client = Client::connect(&now.address()).await.expect("it answers");
        assert_eq!(fetch(&client, "headed").await.len(), 2 * 4, "today's serves it");
        let masks = async |client: &Client| {
            let mut masks = Vec::new();
            for tiers in [vec!["base"], vec!["base", "plain"]] {
                let tiers = tiers.into_iter().map(str::to_owned).collect();
                let mask = client.routing_mask(GetMask::of("mixtral", TierSet::Tiers(tiers)));
                masks.push(mask.await.expect("a mask").mask);
            }
            masks
        };
        let masks_now = masks(&client).await;
        now.terminate();

        let early = Process::serve_with(&early(), scene.directory(), &config).await;
        let client = Client::connect(&early.address()).await.expect("it answers");
        let status: Value = serde_json::from_str(&client.status().await.expect("a status"))
            .expect("the status is JSON");
        let model = &status["models"][0];
        assert_eq!((&model["state"], &model["revision"]), (&"serving".into(), &3.into()));
        let skipped = model["tiers"].as_array().expect("tiers").iter();
        let skipped: Vec<&Value> =
            skipped.filter(|tier| !tier["skipped"].is_null()).map(|tier| &tier["id"]).collect();
        assert_eq!(skipped, ["headed"], "{model:#}");
        is_exact(&client, &original).await;
        let request = FetchExperts {
            model: "mixtral".into(),
            tiers: vec!["headed".into()],
            ..FetchExperts::default()
        };
        let refused = client.fetch_experts(request).await.map(|_| ()).expect_err("it is skipped");
        assert_eq!(refused.kind(), Kind::FailedPrecondition, "{refused}");
        assert_eq!(masks(&client).await, masks_now, "the same masks");
        early.terminate();
    });
}
