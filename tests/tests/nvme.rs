//! The level on disk, through the daemon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tpad_client::{EvictLevel, FetchExperts, FetchedBlock, Medium, Scope};
use tpad_manifest::BlockKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::compare::collect;
use tpad_tests::daemon::Served;
use tpad_tests::scene::{Scene, play};
use tpad_tests::tap::Tap;
use tpad_tests::weed::Weed;

/// Less than the model's experts take: what was read is soon gone from memory.
const LITTLE_MEMORY: &str = "4MiB";

/// More than they take.
const MUCH_MEMORY: &str = "64MiB";

/// Half of the experts in each of two tiers.
const HALVES: &str = r#"
[[tiers]]
id = "warm"
[[tiers.groups]]
experts = "0-3"

[[tiers]]
id = "cold"
[[tiers.groups]]
experts = "4-7"
"#;

/// A daemon with a disk, over the S3 server as `tap` sees it.
async fn start(scene: &Scene, checkpoint: &Checkpoint, tap: &Tap) -> Served {
    start_with(LITTLE_MEMORY, scene, checkpoint, tap).await
}

async fn start_with(memory: &str, scene: &Scene, checkpoint: &Checkpoint, tap: &Tap) -> Served {
    let cache = scene.directory().join("cache");
    let config = format!(
        "{}\n[levels.dram]\ncapacity = {memory:?}\n[levels.nvme]\npath = {cache:?}\ncapacity = \"256MiB\"\n\
         free_floor = \"0\"\n",
        checkpoint.section_through(&tap.endpoint()),
    );
    Served::start(scene, &config).await
}

/// Waits until as many blocks are on disk, reading them again meanwhile: a write that
/// was dropped because others were under way comes with a later read.
async fn keep(served: &Served, blocks: usize) {
    let done = async {
        loop {
            let level = served.status().await["store"]["levels"][1].clone();
            assert_eq!((&level["level"], &level["health"]), (&"nvme".into(), &"ok".into()));
            assert!(level["note"].as_str().is_some_and(|note| note.contains("reads")), "{level}");
            if level["usage"]["blocks"] == blocks {
                return;
            }
            drop(fetch(served).await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), done).await.expect("all is written");
}

/// Waits until the disk's blocks are known again.
async fn found(served: &Served, blocks: usize) {
    let found = async {
        while served.status().await["store"]["levels"][1]["usage"]["blocks"] != blocks {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), found).await.expect("all is found again");
}

fn equal(one: &BTreeMap<BlockKey, FetchedBlock>, other: &BTreeMap<BlockKey, FetchedBlock>) {
    assert_eq!(one.len(), other.len());
    for (key, block) in one {
        assert_eq!(block.image, other[key].image, "{key}");
    }
}

async fn fetch(served: &Served) -> BTreeMap<BlockKey, FetchedBlock> {
    fetch_tier(served, "base").await
}

async fn fetch_tier(served: &Served, tier: &str) -> BTreeMap<BlockKey, FetchedBlock> {
    let tiers = vec![tier.to_owned()];
    let experts = FetchExperts { model: "mixtral".to_owned(), tiers, ..FetchExperts::default() };
    collect(served.client().fetch_experts(experts).await).await
}

#[test]
fn a_restarted_daemon_reads_from_disk_what_it_read_from_the_store() {
    play(async |scene| {
        let original = fixture("mixtral");
        let checkpoint = Checkpoint::import(&original, Store::S3, scene.directory(), None).await;
        let tap = Tap::start(Weed::shared().address());
        let reads = || tap.reads().values().sum::<u64>();
        let served = start(scene, &checkpoint, &tap).await;
        let first = fetch(&served).await;
        assert!(reads() > 0);

        keep(&served, first.len()).await;
        served.stop().await;

        let before = reads();
        let served = start(scene, &checkpoint, &tap).await;
        found(&served, first.len()).await;
        let again = fetch(&served).await;
        equal(&again, &first);
        assert_eq!(reads(), before, "the store was asked for blocks that are on disk");
        let hits = served.metric("tpad_level_reads_total", &["level=\"nvme\"", "outcome=\"hit\""]);
        assert!(hits.await >= 1.0);
        served.stop().await;
    });
}

#[test]
fn with_the_store_down_a_restart_serves_what_is_on_disk_and_says_so() {
    play(async |scene| {
        let original = fixture("mixtral");
        let checkpoint = Checkpoint::import(&original, Store::S3, scene.directory(), None).await;
        let tap = Tap::start(Weed::shared().address());
        let served = start(scene, &checkpoint, &tap).await;
        let first = fetch(&served).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        let config = served.client().fetch_file("mixtral", "config.json").await.expect("a file");
        keep(&served, first.len()).await;
        assert!(served.status().await["models"][0]["stale"].is_null());
        served.stop().await;

        scene.logs().allow("away");
        tap.close();
        let served = start(scene, &checkpoint, &tap).await;
        let model = served.status().await["models"][0].clone();
        assert_eq!((&model["state"], &model["revision"]), (&"serving".into(), &1.into()));
        assert!(model["stale"].as_str().is_some_and(|why| !why.is_empty()), "{model:#}");
        found(&served, first.len()).await;
        equal(&fetch(&served).await, &first);
        let again = served.client().fetch_file("mixtral", "config.json").await.expect("kept");
        assert_eq!(again.bytes, config.bytes);

        tap.open();
        while !served.status().await["models"][0]["stale"].is_null() {
            assert!(Instant::now() < deadline, "it never hears of the store again");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        equal(&fetch(&served).await, &first);
        served.stop().await;
    });
}

/// Waits until all blocks of both halves are in memory and on disk.
async fn fill(served: &Served, blocks: usize) {
    let admin = served.client().admin();
    let filled = async {
        loop {
            fetch_tier(served, "warm").await;
            fetch_tier(served, "cold").await;
            if served.status().await["store"]["levels"][1]["usage"]["blocks"] == blocks {
                return;
            }
            // A write that was dropped because others were under way comes with a
            // read from the store, and there is none of what is in memory.
            let tiers = vec!["warm".to_owned(), "cold".to_owned()];
            let all = Scope { tiers, ..Scope::default() };
            let dram = Some(EvictLevel::Dram);
            admin.evict("mixtral", all, dram).await.expect("they go");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), filled).await.expect("all is written");
}

/// `tpactl evict` of the cold half; what went from memory and from disk.
async fn evict_cold(served: &Served, arguments: &[&str]) -> (Value, Value) {
    let mut command = tpactl();
    command.args(["--addr", &served.address(), "--json", "evict", "--model", "mixtral"]);
    command.args(["--tier", "cold"]).args(arguments);
    // The daemon lives on this runtime.
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.expect("it ends").expect("tpactl runs");
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(told["pinned"]["blocks"], 0, "{told}");
    (told["dram"]["blocks"].clone(), told["nvme"]["blocks"].clone())
}

#[test]
fn an_eviction_empties_the_levels_that_it_names_and_no_other() {
    play(async |scene| {
        let (original, directory) = (fixture("mixtral"), scene.directory());
        let checkpoint = Checkpoint::import(&original, Store::S3, directory, Some(HALVES)).await;
        let tap = Tap::start(Weed::shared().address());
        let reads = || tap.reads().values().sum::<u64>();
        let served = start_with(MUCH_MEMORY, scene, &checkpoint, &tap).await;
        let original = fetch_tier(&served, "cold").await;
        let half = original.len();
        let on_disk =
            async || served.status().await["store"]["levels"][1]["usage"]["blocks"].clone();
        // What the next fetch of the cold half reads, and from where alone.
        let come_from = async |medium, asked: bool| {
            let before = reads();
            let found = fetch_tier(&served, "cold").await;
            let places: Vec<Medium> = found.values().map(|block| block.medium).collect();
            assert_eq!(places, vec![medium; half]);
            assert_eq!(reads() > before, asked, "{before} reads of the store, then {}", reads());
            equal(&found, &original);
        };

        fill(&served, 2 * half).await;
        assert_eq!(evict_cold(&served, &["--level", "dram"]).await, (half.into(), 0.into()));
        assert_eq!(on_disk().await, 2 * half);
        come_from(Medium::Nvme, false).await;

        assert_eq!(evict_cold(&served, &["--level", "nvme"]).await, (0.into(), half.into()));
        assert_eq!(on_disk().await, half);
        come_from(Medium::Dram, false).await;
        // On neither level now, though no request named both.
        assert_eq!(evict_cold(&served, &["--level", "dram"]).await, (half.into(), 0.into()));
        come_from(Medium::ObjectStore, true).await;

        fill(&served, 2 * half).await;
        assert_eq!(evict_cold(&served, &[]).await, (half.into(), half.into()));
        assert_eq!(on_disk().await, half);
        come_from(Medium::ObjectStore, true).await;
        fill(&served, 2 * half).await;
        assert_eq!(evict_cold(&served, &[]).await, (half.into(), half.into()));
        assert_eq!(evict_cold(&served, &[]).await, (0.into(), 0.into()), "nothing is left");

        // A start finds what is on disk: the other half, whole.
        served.stop().await;
        let served = start_with(MUCH_MEMORY, scene, &checkpoint, &tap).await;
        found(&served, half).await;
        let before = reads();
        let warm = fetch_tier(&served, "warm").await;
        assert!(warm.values().all(|block| block.medium == Medium::Nvme));
        assert_eq!(reads(), before);
        let cold = fetch_tier(&served, "cold").await;
        assert!(cold.values().all(|block| block.medium == Medium::ObjectStore));
        equal(&cold, &original);
        served.stop().await;
    });
}
