//! Pins and evictions through a real daemon.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tpad_client::{Client, FetchExperts, Kind, LoadModel, Medium, Scope};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::daemon::Served;
use tpad_tests::scene::{Scene, play};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

/// Models whose blocks are more than a mebibyte keeps.
const OTHERS: [&str; 3] = ["gpt_oss", "qwen3_moe", "deepseek_v3"];

const PLAN: &str = r#"
[[tiers]]
id = "hot"
[[tiers.groups]]
experts = "6, 2"

[[tiers]]
id = "cold"
[[tiers.groups]]
experts = "0, 1, 3"
[[tiers.groups]]
experts = "4, 5, 7"
"#;

async fn serve(scene: &Scene, capacity: &str) -> Served {
    let directory = scene.directory();
    let store = Store::Directory;
    let checkpoint = Checkpoint::import(&fixture("mixtral"), store, directory, Some(PLAN)).await;
    let config = format!("{}[levels.dram]\ncapacity = \"{capacity}\"\n", checkpoint.section());
    Served::start(scene, &config).await
}

fn tier(name: &str) -> Scope {
    Scope { tiers: vec![name.to_owned()], ..Scope::default() }
}

/// Reads a tier's experts; how many came from where.
async fn read(client: &Client, model: &str, tier: &str) -> (u64, u64) {
    let request = FetchExperts {
        model: model.to_owned(),
        tiers: vec![tier.to_owned()],
        ..FetchExperts::default()
    };
    let mut blocks = client.fetch_experts(request).await.expect("a stream");
    let (mut dram, mut elsewhere) = (0, 0);
    while let Some(block) = blocks.next().await {
        match block.expect("right bytes").medium {
            Medium::Dram => dram += 1,
            _ => elsewhere += 1,
        }
    }
    (dram, elsewhere)
}

#[test]
fn a_pin_survives_pressure_and_is_shown() {
    play(async |scene| {
        let served = serve(scene, "1MiB").await;
        let client = served.client();
        for other in OTHERS {
            let (store, directory) = (Store::Directory, scene.directory());
            let other = Checkpoint::import(&fixture(other), store, directory, None).await;
            let load = LoadModel { model: other.model, root: other.root, ..LoadModel::default() };
            client.admin().load_model(load).await.expect("it is loaded");
        }
        let pinned = client.admin().pin("mixtral", "router", tier("hot"), LONG).await;
        let pinned = pinned.expect("it fits");
        assert!(pinned.held.blocks > 0 && !pinned.renewed, "{pinned:?}");
        read(client, "mixtral", "cold").await;
        for _ in 0..3 {
            for model in OTHERS {
                let models = client.list_models().await.expect("the daemon answers");
                let model = models.into_iter().find(|found| found.name == model).expect("loaded");
                for tier in &model.tiers {
                    read(client, &model.name, tier).await;
                }
            }
        }
        let (_, gone) = read(client, "mixtral", "cold").await;
        assert!(gone > 0, "there was no pressure");
        let (dram, elsewhere) = read(client, "mixtral", "hot").await;
        assert!(dram > 0 && elsewhere == 0, "{dram} from memory, {elsewhere} not");
        let status = served.status().await;
        let pin = &status["pins"][0];
        assert_eq!((&pin["owner"], &pin["model"]), (&"router".into(), &"mixtral".into()));
        assert_eq!((&pin["scope"], &pin["blocks"]), (&"hot".into(), &pinned.held.blocks.into()));
        assert_eq!(status["pinned"]["blocks"], pinned.held.blocks);
        assert!((served.metric("tpad_pins", &[]).await - 1.0).abs() < f64::EPSILON);

        let again = client.admin().pin("mixtral", "router", tier("hot"), LONG).await;
        assert!(again.expect("it is there").renewed);
        let unpinned = client.admin().unpin("mixtral", "router", None).await.expect("one pin");
        assert_eq!((unpinned.pins, unpinned.held), (1, pinned.held));
        let none = client.admin().unpin("mixtral", "router", None).await.expect_err("it is gone");
        assert_eq!(none.kind(), Kind::NotFound, "{none}");
        assert_eq!(served.status().await["pinned"]["blocks"], 0);
        served.stop().await;
    });
}

#[test]
fn a_pin_ends_with_its_time_and_with_its_model() {
    play(async |scene| {
        let served = serve(scene, "16MiB").await;
        let admin = served.client().admin();
        let short = Duration::from_millis(50);
        admin.pin("mixtral", "short", tier("hot"), short).await.expect("it fits");
        admin.pin("mixtral", "long", tier("hot"), LONG).await.expect("it fits");
        let ended = async {
            while served.status().await["pins"].as_array().map(Vec::len) != Some(1) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended).await.expect("its time is over");
        let status = served.status().await;
        assert_eq!(status["pins"][0]["owner"], "long", "{status:#}");
        // What both held, the other holds still.
        assert!(status["pinned"]["blocks"].as_u64() > Some(0), "{status:#}");
        admin.unload_model("mixtral").await.expect("it is there");
        let status = served.status().await;
        assert_eq!(status["pins"], serde_json::json!([]));
        assert_eq!(status["pinned"]["blocks"], 0);
        served.stop().await;
    });
}

#[test]
fn what_cannot_be_pinned_is_refused_whole() {
    play(async |scene| {
        let served = serve(scene, "1MiB").await;
        let admin = served.client().admin();
        let all = Scope { tiers: vec!["hot".into(), "cold".into()], ..Scope::default() };
        let full = admin.pin("mixtral", "greedy", all, LONG).await.expect_err("it is too much");
        assert_eq!(full.kind(), Kind::ResourceExhausted, "{full}");
        let unknown = admin.pin("mixtral", "w", tier("nobody"), LONG).await.expect_err("no tier");
        assert_eq!(unknown.kind(), Kind::NotFound, "{unknown}");
        for (owner, ttl) in [("", LONG), ("w", Duration::ZERO), ("w", LONG * 24 * 31)] {
            let wrong = admin.pin("mixtral", owner, tier("hot"), ttl).await.expect_err("no sense");
            assert_eq!(wrong.kind(), Kind::InvalidArgument, "{wrong}");
        }
        let status = served.status().await;
        assert_eq!(status["pins"], serde_json::json!([]));
        assert_eq!(status["pinned"]["blocks"], 0, "nothing stays of what was refused");
        served.stop().await;
    });
}

#[test]
fn tpactl_pins_unpins_and_evicts_all_but_pinned_blocks() {
    play(async |scene| {
        let served = serve(scene, "16MiB").await;
        let address = served.address();
        let run = |arguments: &'static [&'static str]| {
            let mut command = tpactl();
            command.args(["--addr", &address, "--json"]).args(arguments);
            finish(command)
        };
        let (_, cold) = read(served.client(), "mixtral", "cold").await;
        assert!(cold > 0);
        let pin =
            ["pin", "--model", "mixtral", "--owner", "w", "--ttl", "600", "--group", "cold/1"];
        let pinned = run(pin.to_vec().leak()).await;
        let held = pinned["blocks"].as_u64().expect("a count");
        assert_eq!(held, cold / 2, "one of two groups of three: {pinned}");
        let evict: &[&str] = &["evict", "--model", "mixtral", "--tier", "cold"];
        let evicted = run(evict).await;
        assert_eq!(evicted["dram"]["blocks"], cold - held, "{evicted}");
        assert_eq!(evicted["pinned"]["blocks"], held, "{evicted}");
        assert_eq!(read(served.client(), "mixtral", "cold").await, (held, cold - held));
        let unpin: &[&str] = &["unpin", "--model", "mixtral", "--owner", "w", "--group", "cold/1"];
        assert_eq!(run(unpin).await["pins"], 1);
        let evict: &[&str] =
            &["evict", "--model", "mixtral", "--expert", "cold/1/0", "--level", "dram"];
        assert_eq!(run(evict).await["dram"]["blocks"], cold / 6);
        served.stop().await;
    });
}

/// Runs it beside the daemon, which lives on this runtime.
async fn finish(mut command: Command) -> Value {
    let output = tokio::task::spawn_blocking(move || command.output()).await;
    let output = output.expect("it ends").expect("tpactl runs");
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}
