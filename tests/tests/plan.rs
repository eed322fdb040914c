//! `tpactl plan`, held against what `tpactl manifest show` lists.

use std::collections::BTreeMap;

use serde_json::Value;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::scene::{Scene, play};

const PLAN: &str = r#"
default_tier_set = ["hot", "warm"]

[[tiers]]
id = "hot"
placement = "hbm"
k_tier = 2
k_expert = 2
[[tiers.groups]]
experts = "6, 2"

[[tiers]]
id = "warm"
placement = "dram"
k_tier = 2
k_expert = 1
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

/// What the indexes list, block by block.
#[derive(Default)]
struct Listed {
    /// Bytes of each tier, routers included.
    tiers: BTreeMap<String, u64>,
    /// The largest expert of a tier at a layer.
    largest: BTreeMap<(String, u64), u64>,
}

async fn import(scene: &Scene) -> Checkpoint {
    Checkpoint::import(&fixture("mixtral"), Store::Directory, scene.directory(), Some(PLAN)).await
}

fn listed(root: &str) -> Listed {
    let output = tpactl().args(["manifest", "show", root, "--index"]).output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    let mut listed = Listed::default();
    for line in String::from_utf8(output.stdout).expect("UTF-8").lines() {
        let block: Value = serde_json::from_str(line).expect("JSON");
        let bytes = block["image_bytes"].as_u64().expect("a size");
        let Some(tier) = block["key"]["tier"].as_str() else { continue };
        *listed.tiers.entry(tier.to_owned()).or_default() += bytes;
        if block["key"]["kind"] == "expert" {
            let layer = block["key"]["layer"].as_u64().expect("a layer");
            let largest = listed.largest.entry((tier.to_owned(), layer)).or_default();
            *largest = bytes.max(*largest);
        }
    }
    listed
}

fn plan(root: &str, options: &[&str]) -> Value {
    let output = tpactl().args(["plan", root, "--json"]).args(options).output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A tier's bytes in GPU memory, host memory, on disk and nowhere near.
fn spread(plan: &Value, n: usize) -> [u64; 4] {
    let spread = &plan["tiers"][n]["spread"];
    ["hbm", "dram", "nvme", "object_store"].map(|medium| spread[medium].as_u64().expect("bytes"))
}

#[test]
fn a_plan_adds_up_to_what_the_indexes_list() {
    play(async |scene| {
        let checkpoint = import(scene).await;
        let listed = listed(&checkpoint.root);
        let [hot, warm, disk, cold] =
            ["hot", "warm", "disk", "cold"].map(|tier| listed.tiers[tier]);

        let all = plan(&checkpoint.root, &["--dram", "64MiB", "--nvme", "64MiB"]);
        let spreads = [[0, hot, 0, 0], [0, warm, 0, 0], [0, 0, disk, 0], [0, 0, 0, cold]];
        for (n, expected) in spreads.into_iter().enumerate() {
            assert_eq!(spread(&all, n), expected, "{all:#}");
        }
        assert_eq!(all["tiers"][0]["home"], "dram");
        assert_eq!(all["tiers"][0]["home_reason"], "no GPU: served from dram");
        assert_eq!(all["cost"]["warm_bytes"], hot + warm + disk);
        assert_eq!(all["cost"]["on_demand_bytes"], cold);
        assert!(all["cost"]["warm_seconds"].is_null(), "no rate was given: {all:#}");
        assert_eq!(all["warnings"], serde_json::json!([]));

        // Two tiers for a token: at each layer two experts of one and one of the other.
        let k = |tier: &str| if tier == "hot" { 2 } else { 1 };
        let default =
            listed.largest.iter().filter(|((tier, _), _)| tier == "hot" || tier == "warm");
        let cycle: u64 = default.map(|((tier, _), bytes)| k(tier) * bytes).sum();
        assert!(cycle > 0);
        assert_eq!(all["token_cycle_bytes"], cycle);

        let bytes = format!("{}", (hot + warm + disk) / 4);
        let timed = plan(
            &checkpoint.root,
            &["--dram", "64MiB", "--nvme", "64MiB", "--origin-rate", &bytes],
        );
        let seconds = timed["cost"]["warm_seconds"].as_f64().expect("a time");
        assert!((4.0..4.1).contains(&seconds), "{seconds}");
    });
}

#[test]
fn what_does_not_fit_is_told_with_its_numbers() {
    play(async |scene| {
        let checkpoint = import(scene).await;
        let listed = listed(&checkpoint.root);
        let (hot, disk) = (listed.tiers["hot"], listed.tiers["disk"]);
        // GPU memory for half of the hot tier, memory for nothing else, no disk.
        let hbm = (hot / 2).to_string();
        let small = plan(&checkpoint.root, &["--dram", "4096", "--hbm", &hbm]);
        let dram = small["room"]["dram"].as_u64().expect("bytes");
        assert!(dram < 4096, "not all of it keeps blocks: {small:#}");
        // Padding takes some of the room.
        let [in_hbm, in_dram, on_disk, on_demand] = spread(&small, 0);
        assert!((hot / 2 * 8 / 10..=hot / 2).contains(&in_hbm), "{small:#}");
        assert!((dram * 8 / 10..=dram).contains(&in_dram), "{small:#}");
        assert_eq!((on_disk, in_hbm + in_dram + on_demand), (0, hot), "{small:#}");
        assert_eq!(spread(&small, 2), [0, 0, 0, disk], "{small:#}");
        assert_eq!(small["tiers"][2]["home"], "object_store");
        let warnings: Vec<&str> = small["warnings"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for expected in ["tier hot is ", "tier warm is ", "dram keeps 2."] {
            assert!(
                warnings.iter().any(|line| line.contains(expected)),
                "{expected}: {warnings:#?}"
            );
        }
        assert_eq!(warnings.len(), 3, "{warnings:#?}");

        // For people, and for the machine that it runs on.
        let output = tpactl().args(["plan", &checkpoint.root]).output().expect("it runs");
        let text = String::from_utf8(output.stdout.clone()).expect("UTF-8");
        assert!(output.status.success(), "{}", said(&output));
        assert!(text.contains("a quarter of") && text.contains("token cycle"), "{text}");
        let none = scene.directory().join("none");
        let missing = tpactl().arg("plan").arg(none).output().expect("it runs");
        assert_eq!(missing.status.code(), Some(4), "{}", said(&missing));
    });
}
