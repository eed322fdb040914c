//! The level on disk, through the daemon.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tpad_client::{FetchExperts, FetchedBlock};
use tpad_manifest::BlockKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::compare::collect;
use tpad_tests::daemon::Served;
use tpad_tests::scene::{Scene, play};
use tpad_tests::tap::Tap;
use tpad_tests::weed::Weed;

/// Less than the model's experts take: what was read is soon gone from memory.
const LITTLE_MEMORY: &str = "[levels.dram]\ncapacity = \"4MiB\"\n";

/// A daemon with a disk, over the S3 server as `tap` sees it.
async fn start(scene: &Scene, checkpoint: &Checkpoint, tap: &Tap) -> Served {
    let cache = scene.directory().join("cache");
    let config = format!(
        "{}\n{LITTLE_MEMORY}[levels.nvme]\npath = {cache:?}\ncapacity = \"256MiB\"\n\
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
    let tiers = vec!["base".to_owned()];
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
