//! Prefetch: bounded, below demand, cancellable, and its waste counted.

use std::time::Duration;

use serde_json::Value;
use tpad_client::{FetchExperts, Kind, Medium, Scope};
use tpad_tests::checkpoint::{Checkpoint, Store, said, tpactl};
use tpad_tests::daemon::Served;
use tpad_tests::scene::{Scene, play};
use tpad_tests::shards::{self, ONE_LAYER_EXPERT_BYTES};
use tpad_tests::tap::{Fault, Tap};
use tpad_tests::weed::Weed;

const CAPACITY: u64 = 4 << 20;

/// Ten times the memory.
fn cold_experts() -> u32 {
    u32::try_from(10 * CAPACITY / ONE_LAYER_EXPERT_BYTES + 1).expect("small")
}

/// A model with a tier that fits and one of ten times the memory, from the S3
/// server through a tap.
async fn start(scene: &Scene, capacity: u64) -> (Served, Tap) {
    let directory = scene.directory().join("model");
    shards::one_layer(&directory, 4 + cold_experts());
    let plan = format!(
        "default_tier_set = [\"warm\"]\n\
         [[tiers]]\nid = \"warm\"\nplacement = \"dram\"\n[[tiers.groups]]\nexperts = \"0-3\"\n\
         [[tiers]]\nid = \"cold\"\n[[tiers.groups]]\nexperts = \"4-{}\"\n",
        3 + cold_experts()
    );
    let checkpoint =
        Checkpoint::import(&directory, Store::S3, scene.directory(), Some(&plan)).await;
    let tap = Tap::start(Weed::shared().address());
    let section = checkpoint.section_through(&tap.endpoint());
    let levels = format!("[levels.dram]\ncapacity = \"{capacity}\"\n");
    let config = format!("ready_when = \"warm\"\n{section}\n{levels}");
    (Served::start(scene, &config).await, tap)
}

fn experts(experts: std::ops::Range<u32>) -> Scope {
    let tier: tpad_manifest::TierId = "cold".parse().expect("an id");
    let key = |expert| tpad_manifest::ExpertKey { tier: tier.clone(), group: 0, expert };
    Scope { experts: experts.map(key).collect(), ..Scope::default() }
}

fn tier(tier: &str) -> Scope {
    Scope { tiers: vec![tier.to_owned()], ..Scope::default() }
}

fn requests(tap: &Tap) -> u64 {
    tap.reads().values().sum()
}

/// Where the experts of a scope were read from.
async fn media(served: &Served, keys: Scope) -> Vec<Medium> {
    let Scope { tiers, experts, .. } = keys;
    let model = "model".to_owned();
    let request = FetchExperts { model, tiers, keys: experts, ..FetchExperts::default() };
    let mut blocks = served.client().fetch_experts(request).await.expect("a stream");
    let mut media = Vec::new();
    while let Some(block) = blocks.next().await {
        media.push(block.expect("right bytes").medium);
    }
    media
}

#[test]
fn what_was_prefetched_is_read_from_memory() {
    play(async |scene| {
        let (served, tap) = start(scene, CAPACITY).await;
        let prefetch = served.client().prefetch("model", experts(0..4)).await.expect("accepted");
        let done = prefetch.finish().await.expect("all is read");
        assert_eq!((done.asked.blocks, done.fetched, done.revision), (4, done.asked, 1));
        let before = requests(&tap);
        assert_eq!(media(&served, experts(0..4)).await, [Medium::Dram; 4]);
        assert_eq!(requests(&tap), before);

        // Again: it is there. From the command line, too.
        let mut command = tpactl();
        command.args(["--addr", &served.address(), "--json", "prefetch", "--model", "model"]);
        command.args(["--expert", "cold/0/1", "--expert", "cold/0/9"]);
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.expect("no panic").expect("it runs");
        assert!(output.status.success(), "{}", said(&output));
        let done: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((&done["there"]["blocks"], &done["fetched"]["blocks"]), (&1.into(), &1.into()));

        let unknown = served.client().prefetch("model", tier("nowhere")).await;
        assert_eq!(unknown.expect_err("there is no such tier").kind(), Kind::NotFound);
        served.stop().await;
    });
}

#[test]
fn a_prefetch_of_too_much_is_bounded_costs_no_warm_tier_and_its_waste_is_counted() {
    play(async |scene| {
        let (served, tap) = start(scene, CAPACITY).await;
        let prefetch = served.client().prefetch("model", tier("cold")).await.expect("accepted");
        let done = prefetch.finish().await.expect("nothing failed");
        let all = done.there.blocks + done.fetched.blocks + done.no_room.blocks;
        // The router of the tier's one layer goes with it.
        assert_eq!((all, done.asked.blocks), (done.asked.blocks, u64::from(cold_experts()) + 1));
        assert!(done.fetched.blocks > 1 && done.fetched.bytes < CAPACITY, "{done:?}");
        assert!(requests(&tap) < u64::from(cold_experts()) / 2, "what has no room is not read");
        assert_eq!(media(&served, tier("warm")).await, [Medium::Dram; 4]);

        let wasted = async || served.metric("tpad_prefetch_wasted_bytes_total", &[]).await;
        assert!(wasted().await.abs() < f64::EPSILON);
        let (used, unused) = (experts(0..1), experts(1..2));
        assert_eq!(media(&served, used.clone()).await, [Medium::Dram]);
        for scope in [used, unused] {
            let evicted = served.client().admin().evict("model", scope, None).await;
            assert_eq!(evicted.expect("evicted").dram.blocks, 1);
        }
        #[expect(clippy::cast_precision_loss, reason = "it is small")]
        let expected = ONE_LAYER_EXPERT_BYTES.next_multiple_of(256) as f64;
        assert!((wasted().await - expected).abs() < 1.0, "{}", wasted().await);
        served.stop().await;
    });
}

#[test]
fn a_cancelled_prefetch_reads_no_more_than_what_was_on_its_way() {
    play(async |scene| {
        let (served, tap) = start(scene, 32 * CAPACITY).await;
        let before = requests(&tap);
        tap.set(Fault::Held);
        let mut prefetch =
            served.client().prefetch("model", experts(0..8)).await.expect("accepted");
        let first = prefetch.next().await.expect("it began").expect("it is accepted");
        assert_eq!((first.asked.blocks, first.fetched.blocks), (8, 0));
        let begun = async {
            while requests(&tap) == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), begun).await.expect("it reads");
        drop(prefetch);
        let mut more = served.client().prefetch("model", tier("cold")).await.expect("accepted");
        more.next().await.expect("it began").expect("it is accepted");
        drop(more);
        tap.set(Fault::None);
        let over = async {
            while served.status().await["store"]["fills"] != 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), over).await.expect("fills end");
        // All of them would have fitted.
        let read = requests(&tap) - before;
        assert!(read <= 24 && read < u64::from(cold_experts()) / 4, "{read} requests");
        served.stop().await;
    });
}

#[test]
fn a_block_that_cannot_be_read_fails_the_prefetch_after_the_others_were_tried() {
    play(async |scene| {
        let (served, tap) = start(scene, CAPACITY).await;
        scene.logs().allow("cannot be served");
        tap.set(Fault::FlippedBit);
        let mut prefetch =
            served.client().prefetch("model", experts(0..4)).await.expect("accepted");
        let mut last = prefetch.next().await.expect("it began").expect("it is accepted");
        let error = loop {
            match prefetch.next().await.expect("it does not end well") {
                Ok(news) => last = news,
                Err(error) => break error,
            }
        };
        assert_eq!((last.failed.blocks, error.kind()), (4, Kind::DataLoss), "{error}");
        assert!(error.to_string().contains("cold/0/"), "{error}");
        assert!(prefetch.next().await.is_none());
        served.stop().await;
    });
}
