//! What `/metrics` and `/status` count is what a client did.

use tpad_client::{FetchDense, FetchExperts, FetchRouters, FetchedBlock, Kind};
use tpad_manifest::ExpertKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::compare::collect;
use tpad_tests::daemon::Served;
use tpad_tests::scene::play;
use tpad_tests::tap::Tap;
use tpad_tests::weed::Weed;

/// A counter's value as the integer that it is.
async fn count(served: &Served, name: &str, labels: &[&str]) -> u64 {
    let value = served.metric(name, labels).await;
    assert!(value >= 0.0 && value.fract() == 0.0, "{name}: {value}");
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    let count = value as u64;
    count
}

fn image_bytes<'a>(blocks: impl IntoIterator<Item = &'a FetchedBlock>) -> u64 {
    blocks.into_iter().map(|block| block.image.len() as u64).sum()
}

#[test]
fn counters_equal_what_a_scripted_client_did() {
    play(async |scene| {
        let original = fixture("mixtral");
        let checkpoint = Checkpoint::import(&original, Store::S3, scene.directory(), None).await;
        let tap = Tap::start(Weed::shared().address());
        let served = Served::start(scene, &checkpoint.section_through(&tap.endpoint())).await;
        let client = served.client();
        let tier = client.describe_model("mixtral").await.expect("it is served").summary.tiers;
        let tier = tier[0].clone();
        let tier_label = format!("tier=\"{tier}\"");
        let id: tpad_manifest::TierId = tier.parse().expect("an id");
        let expert = |expert, layer| FetchExperts {
            model: "mixtral".to_owned(),
            blocks: vec![(ExpertKey { tier: id.clone(), group: 0, expert }, layer)],
            ..FetchExperts::default()
        };

        // Three cold experts, two of them again, the routers, one dense tensor.
        let mut cold = Vec::new();
        for (number, layer) in [(0, 0), (7, 0), (0, 1)] {
            cold.extend(collect(client.fetch_experts(expert(number, layer)).await).await);
        }
        let mut warm = Vec::new();
        for (number, layer) in [(7, 0), (0, 1)] {
            warm.extend(collect(client.fetch_experts(expert(number, layer)).await).await);
        }
        let routers = FetchRouters { model: "mixtral".to_owned(), ..FetchRouters::default() };
        let routers = collect(client.fetch_routers(routers).await).await;
        let names = vec!["model.norm.weight".to_owned()];
        let dense = FetchDense { model: "mixtral".to_owned(), names };
        let dense = collect(client.fetch_dense(dense).await).await;
        // And what does not exist.
        let missing = client.fetch_experts(expert(8, 0)).await.expect_err("there are eight");
        assert_eq!(missing.kind(), Kind::NotFound);

        let cold_bytes = image_bytes(cold.iter().map(|(_, block)| block));
        let warm_bytes = image_bytes(warm.iter().map(|(_, block)| block));
        let other_bytes = image_bytes(routers.values()) + image_bytes(dense.values());
        let (origin, dram) = ("level=\"object_store\"", "level=\"dram\"");
        for (name, labels, expected) in [
            ("tpad_blocks_served_total", vec![tier_label.as_str(), origin], 3),
            ("tpad_blocks_served_total", vec![&tier_label, dram], 2),
            ("tpad_blocks_served_total", vec!["tier=\"router\"", origin], 2),
            ("tpad_blocks_served_total", vec!["tier=\"dense\"", origin], 1),
            ("tpad_blocks_served_total", vec![], 8),
            ("tpad_bytes_served_total", vec![&tier_label, origin], cold_bytes),
            ("tpad_bytes_served_total", vec![&tier_label, dram], warm_bytes),
            ("tpad_bytes_served_total", vec![], cold_bytes + warm_bytes + other_bytes),
            ("tpad_level_reads_total", vec![dram, "outcome=\"hit\""], 2),
            ("tpad_level_reads_total", vec![dram, "outcome=\"miss\""], 6),
            ("tpad_requests_total", vec!["FetchExperts", "code=\"OK\""], 5),
            ("tpad_requests_total", vec!["FetchExperts", "code=\"NOT_FOUND\""], 1),
            ("tpad_requests_total", vec!["FetchRouters", "code=\"OK\""], 1),
            ("tpad_requests_total", vec!["FetchDense", "code=\"OK\""], 1),
            ("tpad_requests_total", vec!["DescribeModel", "code=\"OK\""], 1),
            ("tpad_model_loads_total", vec!["outcome=\"loaded\""], 1),
        ] {
            assert_eq!(count(&served, name, &labels).await, expected, "{name} {labels:?}");
        }

        // A counter that never counted is not there at all.
        let (_, exposition) = served.http("/metrics").await;
        assert!(!exposition.contains("tpad_verify_failures_total{"), "{exposition}");

        // What the daemon asked of the store is what the store saw.
        let seen: u64 = tap.reads().values().sum();
        let asked = count(&served, "tpad_origin_requests_total", &["outcome=\"ok\""]).await;
        assert!(seen > 0);
        assert_eq!(asked, seen);

        // Inspection counts nothing and caches nothing.
        let before = count(&served, "tpad_level_reads_total", &[]).await;
        let mut blocks = client.list_blocks("mixtral", None);
        while let Some(block) = blocks.next().await {
            block.expect("the index can be read");
        }
        drop(served.status().await);
        assert_eq!(count(&served, "tpad_level_reads_total", &[]).await, before);

        // The same numbers, as people read them.
        let status = served.status().await;
        let model = &status["models"][0];
        assert_eq!((&model["name"], &model["revision"]), (&"mixtral".into(), &1.into()));
        assert_eq!(model["tiers"][0]["id"], tier.as_str());
        // Eight experts and a router at each of two layers.
        assert_eq!(model["tiers"][0]["blocks"], 18);
        let level = &status["store"]["levels"][0];
        assert_eq!((&level["level"], &level["usage"]["blocks"]), (&"dram".into(), &6.into()));
        // In memory a block fills whole pages.
        let kept =
            cold.iter().map(|(_, block)| block).chain(routers.values()).chain(dense.values());
        let pages = kept.map(|block| block.image.len().next_multiple_of(4096) as u64);
        let kept: serde_json::Value = pages.sum::<u64>().into();
        assert_eq!(level["usage"]["bytes"], kept, "{status:#}");
        let classes = status["store"]["classes"].as_array().expect("a list");
        let blocks: u64 = classes.iter().filter_map(|class| class["blocks"].as_u64()).sum();
        assert_eq!(blocks, 6, "{status:#}");
        served.stop().await;
    });
}
