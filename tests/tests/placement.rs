//! Where tiers are at home, counted by what is read from the store and the disk.

use std::time::Duration;

use serde_json::Value;
use tpad_client::{FetchExperts, FetchRouters, FetchedBlock, Scope};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::compare::{self, collect};
use tpad_tests::daemon::Served;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};
use tpad_tests::shards;
use tpad_tests::tap::{Fault, Tap};
use tpad_tests::weed::Weed;

const PLAN: &str = r#"
default_tier_set = ["hot"]

[[tiers]]
id = "hot"
placement = "hbm"
[[tiers.groups]]
experts = "6, 2"

[[tiers]]
id = "warm"
placement = "dram"
[[tiers.groups]]
experts = "7, 0"

[[tiers]]
id = "disk"
placement = "nvme"
[[tiers.groups]]
experts = "1, 3"

[[tiers]]
id = "cold"
placement = "object_store"
[[tiers.groups]]
experts = "4, 5"
"#;

/// What reading a tier took from the store and from disk.
struct Cost {
    requests: u64,
    disk_reads: u64,
}

struct Placed {
    served: Served,
    tap: Tap,
    model: String,
}

impl Placed {
    /// A daemon that is ready once its tiers are at home.
    async fn start(scene: &Scene, checkpoint: &Checkpoint, levels: &str) -> Self {
        let tap = Tap::start(Weed::shared().address());
        let section = checkpoint.section_through(&tap.endpoint());
        let config = format!("ready_when = \"warm\"\n{section}\n{levels}");
        let served = Served::start(scene, &config).await;
        Self { served, tap, model: checkpoint.model.clone() }
    }

    fn requests(&self) -> u64 {
        self.tap.reads().values().sum()
    }

    async fn disk_reads(&self) -> u64 {
        let labels = ["level=\"nvme\"", "outcome=\"hit\""];
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a small count"
        )]
        let hits = self.served.metric("tpad_level_reads_total", &labels).await as u64;
        hits
    }

    /// Fetches a tier's experts and compares them with the original.
    async fn fetch(&self, tier: &str, original: &Reference) -> Cost {
        let (requests, disk_reads) = (self.requests(), self.disk_reads().await);
        let request = FetchExperts {
            model: self.model.clone(),
            tiers: vec![tier.to_owned()],
            ..FetchExperts::default()
        };
        let blocks = collect(self.served.client().fetch_experts(request).await).await;
        assert!(!blocks.is_empty());
        for block in blocks.values() {
            exact(block, original);
        }
        Cost {
            requests: self.requests() - requests,
            disk_reads: self.disk_reads().await - disk_reads,
        }
    }

    async fn tier(&self, tier: &str) -> Value {
        let status = self.served.status().await;
        let tiers = status["models"][0]["tiers"].as_array().expect("tiers").clone();
        tiers.into_iter().find(|status| status["id"] == tier).expect("it is served")
    }
}

fn exact(block: &FetchedBlock, original: &Reference) {
    let expert = block.source.expect("an expert names its source").expert;
    let tpad_manifest::BlockKey::Expert { layer, .. } = block.key else {
        unreachable!("{} is no expert", block.key)
    };
    compare::exact(block, &original.experts[&(layer, expert)]);
}

#[test]
fn once_warm_each_tier_is_read_from_its_home() {
    play(async |scene| {
        let original = fixture("mixtral");
        let checkpoint =
            Checkpoint::import(&original, Store::S3, scene.directory(), Some(PLAN)).await;
        let cache = scene.directory().join("cache");
        let levels = format!(
            "[levels.dram]\ncapacity = \"16MiB\"\n\
             [levels.nvme]\npath = {cache:?}\ncapacity = \"64MiB\"\nfree_floor = \"0\"\n"
        );
        let placed = Placed::start(scene, &checkpoint, &levels).await;
        let original = Reference::read(&original);
        for (tier, home) in [("hot", "dram"), ("warm", "dram"), ("disk", "nvme")] {
            let status = placed.tier(tier).await;
            assert_eq!((&status["home"], &status["warm"]["state"]), (&home.into(), &"warm".into()));
            assert_eq!(status["warm"]["done_bytes"], status["bytes"], "{status:#}");
            assert_eq!(status["missing_bytes"], 0, "{status:#}");
            assert!(status["resident_bytes"][home].as_u64() > Some(0), "{status:#}");
        }
        let (hot, cold) = (placed.tier("hot").await, placed.tier("cold").await);
        assert_eq!(hot["home_reason"], "no GPU: served from dram");
        assert!(placed.tier("warm").await["home_reason"].is_null());
        assert_eq!(
            (&cold["home"], &cold["warm"]["state"]),
            (&"object_store".into(), &"on_demand".into())
        );
        assert_eq!(cold["resident_bytes"]["dram"], 0);

        for tier in ["hot", "warm"] {
            let cost = placed.fetch(tier, &original).await;
            assert_eq!((cost.requests, cost.disk_reads), (0, 0), "{tier}");
        }
        let cost = placed.fetch("disk", &original).await;
        assert!(cost.requests == 0 && cost.disk_reads >= 1, "{} reads", cost.disk_reads);
        let cost = placed.fetch("cold", &original).await;
        assert!(cost.requests >= 1 && cost.disk_reads == 0, "{} requests", cost.requests);

        // Routers go home with their tiers.
        let before = placed.requests();
        for tier in ["hot", "warm", "disk"] {
            let (model, tiers) = (placed.model.clone(), vec![tier.to_owned()]);
            let request = FetchRouters { model, tiers, ..FetchRouters::default() };
            let routers = placed.served.client().fetch_routers(request).await;
            assert!(!collect(routers).await.is_empty());
        }
        assert_eq!(placed.requests(), before);

        // A restart brings home from disk what is there.
        let Placed { served, tap, model } = placed;
        served.stop().await;
        let before = tap.reads().values().sum::<u64>();
        let config = format!(
            "ready_when = \"warm\"\n{}\n{levels}",
            checkpoint.section_through(&tap.endpoint())
        );
        let placed = Placed { served: Served::start(scene, &config).await, tap, model };
        assert_eq!(placed.tier("disk").await["missing_bytes"], 0);
        assert_eq!(placed.fetch("disk", &original).await.requests, 0);
        let again = placed.requests() - before;
        assert!(again < before / 2, "{again} requests after {before}");

        // A tier that lost blocks says so.
        let sum = placed.tier("warm").await["bytes"].clone();
        let scope = Scope { tiers: vec!["warm".to_owned()], ..Scope::default() };
        placed.served.client().admin().evict(&placed.model, scope, None).await.expect("evicted");
        let status = placed.tier("warm").await;
        let missing = status["missing_bytes"].as_u64();
        assert!(missing > Some(0) && missing <= sum.as_u64(), "{status:#}");
        placed.served.stop().await;
    });
}

#[test]
fn a_cold_tier_of_ten_times_the_memory_pushes_out_nothing_of_a_warm_one() {
    const CAPACITY: u64 = 4 << 20;
    let cold = u32::try_from(10 * CAPACITY / shards::ONE_LAYER_EXPERT_BYTES + 1).expect("small");
    let plan = format!(
        "default_tier_set = [\"warm\"]\n\
         [[tiers]]\nid = \"warm\"\nplacement = \"dram\"\n[[tiers.groups]]\nexperts = \"0-7\"\n\
         [[tiers]]\nid = \"cold\"\nplacement = \"object_store\"\n[[tiers.groups]]\n\
         experts = \"8-{}\"\n",
        7 + cold
    );
    play(async |scene| {
        let directory = scene.directory().join("model");
        shards::one_layer(&directory, 8 + cold);
        let checkpoint =
            Checkpoint::import(&directory, Store::S3, scene.directory(), Some(&plan)).await;
        let levels = format!("[levels.dram]\ncapacity = \"{CAPACITY}\"\n");
        let placed = Placed::start(scene, &checkpoint, &levels).await;
        let original = Reference::read(&directory);
        let cost = placed.fetch("cold", &original).await;
        assert!(cost.requests >= u64::from(cold) / 2, "{} requests", cost.requests);
        let status = placed.tier("warm").await;
        assert_eq!(status["missing_bytes"], 0, "{status:#}");
        assert_eq!(placed.fetch("warm", &original).await.requests, 0);
        placed.served.stop().await;
    });
}

#[test]
fn what_does_not_fit_is_said_with_the_numbers_and_served_all_the_same() {
    play(async |scene| {
        let directory = scene.directory().join("model");
        shards::one_layer(&directory, 24);
        let plan = "default_tier_set = [\"all\"]\n[[tiers]]\nid = \"all\"\nplacement = \"dram\"\n\
                    k_tier = 1\nk_expert = 24\n[[tiers.groups]]\nexperts = \"0-23\"\n";
        let checkpoint =
            Checkpoint::import(&directory, Store::S3, scene.directory(), Some(plan)).await;
        scene.logs().allow("placement");
        let levels = "[levels.dram]\ncapacity = \"4MiB\"\n";
        let placed = Placed::start(scene, &checkpoint, levels).await;
        let status = placed.served.status().await;
        let warnings = status["models"][0]["warnings"].as_array().expect("warnings").clone();
        let has =
            |text: &str| warnings.iter().any(|w| w.as_str().is_some_and(|w| w.contains(text)));
        assert!(has("tier all is 6.") && has("dram has 2.4 MiB for it: "), "{warnings:?}");
        assert!(has("less than the 5.9 MiB that one token"), "{warnings:?}");
        let tier = placed.tier("all").await;
        assert_eq!((&tier["home"], &tier["warm"]["state"]), (&"dram".into(), &"warm".into()));
        assert!(tier["missing_bytes"].as_u64() > Some(3 << 20), "{tier:#}");
        let cost = placed.fetch("all", &Reference::read(&directory)).await;
        assert!(cost.requests > 0);
        placed.served.stop().await;
    });
}

#[test]
fn a_store_that_comes_back_ends_the_wait_for_warm_tiers() {
    play(async |scene| {
        let original = fixture("mixtral");
        let checkpoint =
            Checkpoint::import(&original, Store::S3, scene.directory(), Some(PLAN)).await;
        let tap = Tap::start(Weed::shared().address());
        let section = checkpoint.section_through(&tap.endpoint());
        let levels = "[levels.dram]\ncapacity = \"16MiB\"\n";
        let config = format!("ready_when = \"warm\"\n{section}\nretries = 0\n{levels}");
        // Shards cannot be read; manifest and indexes can.
        tap.set(Fault::Status(503));
        let served = Served::start_unready(scene, &config).await;
        let failing = async {
            loop {
                let tier = served.status().await["models"][0]["tiers"][0].clone();
                if tier["warm"]["problem"].is_string() {
                    return tier;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let failing = tokio::time::timeout(Duration::from_secs(60), failing).await;
        let tier = failing.expect("it says what is wrong");
        assert!(tier["missing_bytes"].as_u64() > Some(0), "{tier:#}");
        let (code, body) = served.http("/readyz").await;
        assert_eq!((code, body.contains("warming mixtral")), (503, true), "{body}");
        tap.set(Fault::None);
        served.wait_until_ready().await;
        let tiers = served.status().await["models"][0]["tiers"].clone();
        assert_eq!(tiers[0]["warm"]["state"], "warm");
        assert_eq!(tiers[2]["home"], "object_store");
        assert_eq!(tiers[2]["home_reason"], "no nvme level: fetched on demand");
        served.stop().await;
    });
}
