//! Activation through real daemons: swaps under load, and back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tpad_client::{Client, FetchExperts, GetMask, MaskEvent, WatchMask};
use tpad_manifest::{BlockKey, TierSet};
use tpad_publish::{Activate, DefaultTiers, activate};
use tpad_store::OriginOptions;
use tpad_tests::checkpoint::{Checkpoint, fixture, said, tpactl};
use tpad_tests::compare::exact;
use tpad_tests::daemon::Served;
use tpad_tests::process::Process;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};

const SWAPS: u64 = 200;
const CLIENTS: usize = 8;

/// What a debug build on a loaded machine may take for all of them.
const PATIENCE: Duration = Duration::from_secs(300);

/// Two revisions of one checkpoint, whose keys name other experts.
fn two_revisions(scene: &Scene) -> Checkpoint {
    let root = scene.directory().join("mixtral");
    copy(&fixture("mixtral"), &root);
    let tier = |experts: &str| {
        format!(
            "[[tiers]]\nid = \"base\"\nk_expert = 2\n[[tiers.groups]]\nexperts = \"{experts}\"\n"
        )
    };
    let first = Checkpoint::import_in_place(&root, Some(&tier("0, 1, 2, 3, 4, 5, 6, 7")));
    let plan = scene.directory().join("second.toml");
    std::fs::write(&plan, tier("7, 6, 5, 4, 3, 2, 1, 0")).expect("written");
    let mut import = tpactl();
    import.args(["import", &first.root, "--model", &first.model]);
    import.arg("--plan").arg(plan).arg("--state-dir").arg(scene.directory().join("state"));
    let output = import.output().expect("tpactl runs");
    assert!(output.status.success(), "{}", said(&output));
    first
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a new directory");
    for entry in std::fs::read_dir(from).expect("the fixture") {
        let path = entry.expect("read").path();
        std::fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
    }
}

async fn choose(root: &str, revision: u64) -> u64 {
    let wish = Activate { revision: Some(revision), ..Activate::default() };
    let record = activate(root, &OriginOptions::default(), wish).await;
    record.expect("it is recorded").activation
}

/// Fetches every expert of the model and holds each against the one that the
/// stream's revision gives its key.
async fn fetch(client: &Client, original: &Reference) -> u64 {
    let model = "mixtral".to_owned();
    let request = FetchExperts { model, tiers: vec!["base".into()], ..FetchExperts::default() };
    let mut stream = client.fetch_experts(request).await.expect("a stream");
    let revision = stream.start().revision;
    let mut blocks = BTreeMap::new();
    while let Some(block) = stream.next().await {
        let block = block.expect("right bytes");
        blocks.insert(block.key.clone(), block);
    }
    for (key, block) in &blocks {
        let BlockKey::Expert { key, layer } = key else { unreachable!("{key}") };
        let source = if revision == 1 { key.expert } else { 7 - key.expert };
        assert_eq!(block.source.map(|source| source.expert), Some(source), "revision {revision}");
        exact(block, &original.experts[&(*layer, source)]);
    }
    assert_eq!(blocks.len(), original.experts.len());
    revision
}

#[test]
fn two_hundred_swaps_under_eight_clients_fail_no_request_and_mix_no_revisions() {
    play(async |scene| {
        let checkpoint = two_revisions(scene);
        let original = Arc::new(Reference::read(&checkpoint.original));
        let config = format!(
            "follow_interval = \"5ms\"\n{}[levels.dram]\ncapacity = \"16MiB\"\n",
            checkpoint.section()
        );
        choose(&checkpoint.root, 1).await;
        let daemon = Process::serve(scene.directory(), &config).await;
        let (over, streams) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let client = Client::connect(&daemon.address()).await.expect("it answers");
            let (over, streams) = (Arc::clone(&over), Arc::clone(&streams));
            let original = Arc::clone(&original);
            clients.spawn(async move {
                let mut seen = [0u64; 2];
                while !over.load(Ordering::Relaxed) {
                    seen[usize::from(fetch(&client, &original).await == 2)] += 1;
                    streams.fetch_add(1, Ordering::Relaxed);
                }
                seen
            });
        }
        let watching = Client::connect(&daemon.address()).await.expect("it answers");
        let mut early = 0;
        let swaps = async {
            for swap in 1..=SWAPS {
                let revision = 1 + swap % 2;
                choose(&checkpoint.root, revision).await;
                let read = streams.load(Ordering::Relaxed);
                // Every few swaps clients get to read what was swapped to.
                let swapped = async || {
                    let models = watching.list_models().await.expect("it answers");
                    let read = streams.load(Ordering::Relaxed) - read;
                    models[0].revision == revision && (swap % 4 > 0 || read > 0)
                };
                while !swapped().await {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                if swap == SWAPS / 4 {
                    early = daemon.peak_bytes();
                }
            }
        };
        tokio::time::timeout(PATIENCE, swaps).await.expect("every swap happens");
        over.store(true, Ordering::Relaxed);
        let mut seen = [0u64; 2];
        while let Some(client) = clients.join_next().await {
            let of_client = client.expect("no request failed or mixed revisions");
            seen = [seen[0] + of_client[0], seen[1] + of_client[1]];
        }
        assert!(seen.iter().all(|count| *count >= SWAPS / 16), "{seen:?}");
        let grown = daemon.peak_bytes().saturating_sub(early);
        assert!(grown < 16 << 20, "memory grew by {grown} bytes over the last 150 swaps");
        assert!(daemon.metric("tpad_model_generation", &[]).await >= 200.0);
        assert!(daemon.metric("tpad_model_loads_total", &["outcome=\"failed\""]).await < 1.0);
        daemon.terminate();
    });
}

#[test]
fn a_watching_worker_is_told_within_a_second_and_a_rollback_stays() {
    play(async |scene| {
        let checkpoint = two_revisions(scene);
        choose(&checkpoint.root, 1).await;
        let config = format!("follow_interval = \"20ms\"\n{}", checkpoint.section());
        let served = Served::start(scene, &config).await;
        let watch = WatchMask::of("mixtral", TierSet::Default);
        let mut watch = served.client().watch_routing_mask(watch).await.expect("a watch");
        let mut told = async || loop {
            let event = watch.next().await.expect("it goes on").expect("it is well");
            if let MaskEvent::Mask(mask) = event {
                return mask.revision;
            }
        };
        assert_eq!(told().await, 1);
        let mut model = served.client().watch_model("mixtral").await.expect("a watch");
        let mut now = async || model.next().await.expect("it goes on").expect("it is well");
        assert_eq!(now().await.activation, 1);
        let run = |args: &[&str]| {
            let output = tpactl().args(args).output().expect("it runs");
            assert!(output.status.success(), "{}", said(&output));
        };
        let second = Duration::from_secs(1);
        run(&["activate", &checkpoint.root, "--revision", "2", "--tiers", "base"]);
        let revision = tokio::time::timeout(second, told()).await.expect("within a second");
        assert_eq!(revision, 2);
        let summary = tokio::time::timeout(second, now()).await.expect("within a second");
        assert_eq!((summary.revision, summary.activation, summary.pinned), (2, 2, false));
        run(&["rollback", &checkpoint.root, "--reason", "slow"]);
        let revision = tokio::time::timeout(second, told()).await.expect("within a second");
        assert_eq!(revision, 1);
        let summary = tokio::time::timeout(second, now()).await.expect("within a second");
        assert_eq!((summary.revision, summary.activation), (1, 3));
        // Many looks later.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let status = served.status().await["models"][0].clone();
        assert_eq!((&status["revision"], &status["activation"]), (&1.into(), &3.into()));
        let mask = served.client().routing_mask(GetMask::of("mixtral", TierSet::Default)).await;
        assert_eq!(mask.expect("a mask").revision, 1);
        served.client().admin().unload_model("mixtral").await.expect("it is there");
        let end = model.next().await.expect("it says why").expect_err("it ends");
        assert_eq!(end.kind(), tpad_client::Kind::NotFound);
        assert!(model.next().await.is_none());
        served.stop().await;
    });
}

#[test]
fn a_bad_revision_is_refused_and_the_old_one_serves_on() {
    play(async |scene| {
        let checkpoint = two_revisions(scene);
        let config = format!("follow_interval = \"20ms\"\n{}", checkpoint.section());
        let served = Served::start(scene, &config).await;
        scene.logs().allow("the root cannot be followed");
        let bad = Path::new(&checkpoint.root).join("tpad/revisions/3.json");
        std::fs::write(bad, "{\"format_version\": \"9.0\"}").expect("written");
        let refused = async {
            loop {
                let model = served.status().await["models"][0].clone();
                if let Some(reason) = model["reason"].as_str() {
                    assert!(reason.contains("9.0"), "{reason}");
                    assert_eq!(model["revision"], 2);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), refused).await.expect("it says so");
        let failed = served.metric("tpad_model_loads_total", &["outcome=\"failed\""]).await;
        assert!(failed >= 1.0);
        let original = Reference::read(&checkpoint.original);
        assert_eq!(fetch(served.client(), &original).await, 2);
        choose(&checkpoint.root, 1).await;
        let recovered = async {
            while !served.status().await["models"][0]["reason"].is_null() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), recovered).await.expect("it is over");
        assert_eq!(fetch(served.client(), &original).await, 1);
        let wish = Activate {
            revision: Some(2),
            tiers: DefaultTiers::These(vec!["nowhere".parse().expect("an id")]),
            reason: None,
        };
        let refused = activate(&checkpoint.root, &OriginOptions::default(), wish).await;
        assert!(refused.is_err());
        served.stop().await;
    });
}
