//! Revisions that add tiers: those come home before the swap, while the revision
//! before is served.

use std::time::Duration;

use serde_json::Value;
use tpad_client::{Client, FetchExperts, FetchedBlock, Kind};
use tpad_manifest::BlockKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::compare::{collect, exact};
use tpad_tests::daemon::Served;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};
use tpad_tests::shards;
use tpad_tests::tap::{Fault, Tap};
use tpad_tests::weed::Weed;

/// Nothing that succeeds comes near it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A model whose first revision is served, and whose second has one tier more.
struct Stage {
    checkpoint: Checkpoint,
    original: Reference,
    tap: Tap,
    served: Served,
}

impl Stage {
    async fn set(scene: &Scene, config: &str) -> Self {
        let original = fixture("mixtral");
        let plan = "[[tiers]]\nid = \"base\"\nplacement = \"dram\"\n\
                    [[tiers.groups]]\nexperts = \"0, 1, 2, 3, 4, 5, 6, 7\"\n";
        let checkpoint =
            Checkpoint::import(&original, Store::S3, scene.directory(), Some(plan)).await;
        run(&["activate", &checkpoint.root, "--revision", "1"]);
        let from = scene.directory().join("big");
        shards::tier(&from, "big", &[0, 1], &[2, 3], [64, 32]);
        let add = ["tier", "add", &checkpoint.root, "--id", "big", "--from"];
        let routing = ["--budget", "1M", "--placement", "dram", "--k-expert", "2"];
        run(&[&add[..], &[from.to_str().expect("text")], &routing].concat());
        let tap = Tap::start(Weed::shared().address());
        let section = checkpoint.section_through(&tap.endpoint());
        let config = format!(
            "ready_when = \"warm\"\nfollow_interval = \"20ms\"\n{config}\n{section}\n\
             [levels.dram]\ncapacity = \"16MiB\"\n"
        );
        let served = Served::start(scene, &config).await;
        Self { checkpoint, original: Reference::read(&original), tap, served }
    }

    fn activate(&self, revision: &str) {
        run(&["activate", &self.checkpoint.root, "--revision", revision]);
    }

    async fn model(&self) -> Value {
        self.served.status().await["models"][0].clone()
    }

    /// Waits until the model's status is like this.
    async fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let seen = async {
            loop {
                let model = self.model().await;
                if holds(&model) {
                    return model;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        seen.unwrap_or_else(|_| unreachable!("never: {what}"))
    }

    /// Reads of the model's own shards, or of those that growth has added.
    fn requests(&self, added: bool) -> u64 {
        let reads = self.tap.reads();
        let of = reads.iter().filter(|(place, _)| place.contains("/tpad/shards/") == added);
        of.map(|(_, count)| count).sum()
    }

    /// Reads all experts of the first revision; what it took from the store.
    async fn read_base(&self) -> u64 {
        let before = self.requests(false);
        let blocks = fetch(self.served.client(), "base").await;
        for block in &blocks {
            let BlockKey::Expert { key, layer } = &block.key else { unreachable!("an expert") };
            exact(block, &self.original.experts[&(*layer, key.expert)]);
        }
        assert_eq!(blocks.len(), self.original.experts.len());
        self.requests(false) - before
    }

    /// Reads all experts of the tier that was added; what it took from the store.
    async fn read_added(&self) -> u64 {
        let before = self.requests(true);
        let blocks = fetch(self.served.client(), "big").await;
        assert_eq!(blocks.len(), 2 * 5);
        for block in &blocks {
            let BlockKey::Expert { key, layer } = &block.key else { unreachable!("an expert") };
            // Experts count through all groups in the checkpoint.
            let number = key.expert + if key.group == 0 { 0 } else { 2 };
            let at =
                format!("tpad_tiers.big.layers.{layer}.groups.{}.experts.{number}.", key.group);
            assert_eq!(block.tensors.len(), 3, "{at}");
            for tensor in &block.tensors {
                assert!(tensor.name.starts_with(&at), "{} is not {at}", tensor.name);
                let bytes = shards::content(&tensor.name, tensor.bytes.len() as u64);
                assert!(tensor.bytes == bytes, "{}", tensor.name);
            }
        }
        self.requests(true) - before
    }
}

async fn fetch(client: &Client, tier: &str) -> Vec<FetchedBlock> {
    let request = FetchExperts {
        model: "mixtral".into(),
        tiers: vec![tier.into()],
        ..FetchExperts::default()
    };
    collect(client.fetch_experts(request).await).await.into_values().collect()
}

fn run(args: &[&str]) {
    let output = tpactl().args(args).output().expect("it runs");
    assert!(output.status.success(), "{args:?}: {}", said(&output));
}

fn serves(revision: u64) -> impl Fn(&Value) -> bool {
    move |model| model["revision"] == revision
}

fn dram(model: &Value, tier: usize) -> u64 {
    model["tiers"][tier]["resident_bytes"]["dram"].as_u64().expect("a number")
}

#[test]
fn an_added_tier_comes_home_before_the_swap_and_what_both_have_is_held_once() {
    play(async |scene| {
        let stage = Stage::set(scene, "").await;
        assert_eq!(stage.read_base().await, 0, "it is at home");
        let before = stage.model().await;
        stage.tap.set(Fault::Held);
        stage.activate("2");
        let coming = stage.until("it comes", |model| model["coming"]["revision"] == 2).await;
        assert_eq!((&coming["revision"], &coming["activation"]), (&1.into(), &1.into()));
        stage
            .until("its tier is on its way", |model| {
                model["coming"]["tiers"][1]["warm"]["state"] == "warming"
            })
            .await;
        assert_eq!(stage.read_base().await, 0, "it is served meanwhile");
        let unknown = FetchExperts {
            model: "mixtral".into(),
            tiers: vec!["big".into()],
            ..FetchExperts::default()
        };
        let refused = stage.served.client().fetch_experts(unknown).await;
        assert_eq!(refused.expect_err("not yet").kind(), Kind::NotFound);

        // A rollback does not wait for what it undoes.
        stage.activate("1");
        let back = stage.until("it is taken back", |model| model["activation"] == 3).await;
        assert!(back["coming"].is_null(), "{back:#}");
        assert_eq!((&back["revision"], &back["generation"]), (&1.into(), &before["generation"]));

        stage.activate("2");
        stage.until("it comes again", |model| model["coming"]["revision"] == 2).await;
        stage.tap.set(Fault::None);
        let after = stage.until("it is served", serves(2)).await;
        assert!(after["coming"].is_null(), "{after:#}");
        let added = &after["tiers"][1];
        assert_eq!((&added["id"], &added["warm"]["state"]), (&"big".into(), &"warm".into()));
        assert_eq!(added["missing_bytes"], 0, "{added:#}");
        assert_eq!(stage.read_added().await, 0, "the first read of it waits for no store");
        assert_eq!(stage.read_base().await, 0, "what both have was not read again");
        assert_eq!(dram(&after, 0), dram(&before, 0), "nor is it held twice");
        stage.served.stop().await;
    });
}

#[test]
fn a_tier_that_cannot_come_home_holds_a_swap_up_only_so_long() {
    play(async |scene| {
        let stage = Stage::set(scene, "swap_patience = \"300ms\"").await;
        scene.logs().allow("not at home in time");
        stage.tap.set(Fault::Held);
        stage.activate("2");
        let swapped = stage.until("it is served", serves(2)).await;
        assert_ne!(swapped["tiers"][1]["warm"]["state"], "warm");
        stage.tap.set(Fault::None);
        stage.read_added().await;
        stage.until("it comes home", |model| model["tiers"][1]["warm"]["state"] == "warm").await;
        assert_eq!(stage.read_added().await, 0);
        stage.served.stop().await;
    });
}

#[test]
fn a_load_by_command_goes_before_a_wait_and_chooses_for_one_daemon() {
    play(async |scene| {
        let stage = Stage::set(scene, "").await;
        scene.logs().allow("not at home in time");
        stage.tap.set(Fault::Held);
        stage.activate("2");
        stage.until("it comes", |model| model["coming"]["revision"] == 2).await;
        let client = stage.served.client().admin();
        let loaded = client.stay_on("mixtral", 1).await.expect("it is there");
        assert_eq!((loaded.revision, stage.model().await["pinned"].clone()), (1, true.into()));
        // Whatever the root says by now, and however often it is looked at.
        stage.activate("2");
        stage.tap.set(Fault::None);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let model = stage.model().await;
        assert_eq!((&model["revision"], &model["pinned"]), (&1.into(), &true.into()));
        assert!(model["coming"].is_null() && model["activation"].is_null(), "{model:#}");
        let same = client.reload_model("mixtral").await.expect("it is there");
        assert_eq!(same.revision, 1, "a plain reload keeps the choice");
        let missing = client.stay_on("mixtral", 9).await.expect_err("there is none");
        assert_eq!(missing.kind(), Kind::NotFound, "{missing}");
        assert_eq!(stage.model().await["revision"], 1, "what fails changes nothing");

        let followed = client.follow_root("mixtral").await.expect("it is there");
        assert_eq!(followed.revision, 2);
        let model = stage.model().await;
        assert_eq!((&model["pinned"], &model["activation"]), (&false.into(), &3.into()));
        stage.activate("1");
        stage.until("it follows", serves(1)).await;
        stage.served.stop().await;
    });
}

#[test]
fn a_revision_that_was_chosen_comes_home_whatever_the_root_names() {
    play(async |scene| {
        let stage = Stage::set(scene, "").await;
        stage.tap.set(Fault::Held);
        let admin = stage.served.client().admin();
        let chosen = tokio::spawn(async move { admin.stay_on("mixtral", 2).await });
        stage.until("it comes", |model| model["coming"]["revision"] == 2).await;
        // The root, which names revision 1, is looked at meanwhile by those who follow.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(stage.model().await["coming"]["revision"], 2);
        stage.tap.set(Fault::None);
        let loaded = chosen.await.expect("it ends").expect("it is there");
        assert_eq!(loaded.revision, 2);
        let model = stage.model().await;
        assert_eq!((&model["revision"], &model["pinned"]), (&2.into(), &true.into()));
        assert_eq!(stage.read_added().await, 0, "it came home first");
        stage.served.stop().await;
    });
}

#[test]
fn tpactl_chooses_a_revision_and_follows_again() {
    play(async |scene| {
        let stage = Stage::set(scene, "").await;
        let address = stage.served.address();
        let load = |rest: &[&str]| {
            let mut command = tpactl();
            command.args(["--addr", &address, "--json", "load", "mixtral"]).args(rest);
            let output = command.output().expect("it runs");
            assert!(output.status.success(), "{}", said(&output));
            serde_json::from_slice::<Value>(&output.stdout).expect("JSON")["revision"].clone()
        };
        let load = async |rest: &[&str]| tokio::task::block_in_place(|| load(rest));
        assert_eq!(load(&["--revision", "2"]).await, 2);
        assert_eq!(stage.model().await["pinned"], true);
        assert_eq!(load(&["--follow"]).await, 1, "the record says so");
        assert_eq!(stage.model().await["pinned"], false);
        stage.served.stop().await;
    });
}
