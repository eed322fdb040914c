mod administer;
mod follow;
mod placement;

use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tpad_store::{ErrorKind, HierarchyConfig, ReadOptions, StoreMetrics};

use super::*;
use crate::fixture::{Checkpoint, Shape, Tier, shard_of};
use crate::{BudgetEnforcement, ModelConfig, ModelState, RetryIntervals, Selection};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn model(name: &str, root: &str) -> ModelConfig {
    ModelConfig {
        name: name.into(),
        root: root.into(),
        allowed_bases: Vec::new(),
        tier_sets: std::collections::BTreeMap::new(),
        origin: tpad_store::OriginOptions::default(),
    }
}

fn config(models: Vec<ModelConfig>) -> EngineConfig {
    let millisecond = Duration::from_millis(1);
    EngineConfig {
        retry: RetryIntervals { first: millisecond, longest: 5 * millisecond },
        ..EngineConfig::new(models, HierarchyConfig::new(64 << 20))
    }
}

fn start(config: EngineConfig) -> Arc<Engine> {
    Engine::start(config, EngineMetrics::default(), StoreMetrics::default()).expect("it starts")
}

/// The model once every model was tried.
async fn tried(engine: &Engine, name: &str) -> ModelView {
    let mut readiness = engine.watch_readiness();
    let settled = |now: &Readiness| match now {
        Readiness::Ready => true,
        Readiness::NotReady(why) => !why.starts_with("loading"),
    };
    readiness.wait_for(settled).await.expect("the engine lives");
    engine.view(name).expect("it is configured")
}

async fn serving(engine: &Engine, name: &str) -> Arc<Generation> {
    let view = tried(engine, name).await;
    view.generation.unwrap_or_else(|| panic!("{name} is not served: {:?}", view.reason))
}

/// Why the model is not served.
async fn refused(engine: &Engine, name: &str) -> String {
    let view = tried(engine, name).await;
    assert_eq!(view.state, ModelState::Failed);
    view.reason.expect("a failed model has a reason")
}

#[tokio::test]
async fn the_highest_revision_is_a_number_not_a_text() {
    let mut checkpoint = Checkpoint::empty();
    for revision in [9, 10, 2] {
        checkpoint.publish(&Shape { revision, ..Shape::mixed() });
    }
    std::fs::write(checkpoint.path().join("tpad/revisions/011.json"), "{}").expect("written");
    std::fs::write(checkpoint.path().join("tpad/revisions/99.json.tmp"), "{").expect("written");
    let pinned = format!("{}/tpad/revisions/9.json", checkpoint.root());
    let engine = start(config(vec![model("follows", &checkpoint.root()), model("stays", &pinned)]));
    assert_eq!(serving(&engine, "follows").await.revision(), 10);
    assert_eq!(serving(&engine, "stays").await.revision(), 9);
    engine.shutdown().await;
}

#[tokio::test]
async fn every_block_of_every_tier_reads_as_it_was_written() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let generation = serving(&engine, "m").await;
    for _ in 0..2 {
        for (key, image) in &checkpoint.blocks {
            let block = generation.read(key.clone(), ReadOptions::demand(soon())).await;
            let block = block.unwrap_or_else(|error| panic!("{key}: {error}"));
            assert_eq!(&block.key, key);
            assert_eq!(&*block.served.bytes, &**image, "{key}");
            assert_eq!(block.record.id, tpad_manifest::BlockId::of(image));
        }
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn a_bad_model_stops_no_other_and_serves_once_it_is_repaired() {
    let good = Checkpoint::new(&Shape::mixed());
    let mut bad = Checkpoint::empty();
    let engine = start(config(vec![model("bad", &bad.root()), model("good", &good.root())]));
    assert_eq!(serving(&engine, "good").await.revision(), 1);
    assert_eq!(engine.ready(), Readiness::Ready);
    let reason = refused(&engine, "bad").await;
    assert!(reason.contains("has no revision"), "{reason}");
    let error = engine.open("bad").expect_err("it is not loaded");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::Unavailable, "MODEL_NOT_LOADED"));
    let status = serde_json::to_value(engine.status()).expect("it serializes");
    assert_eq!(status["models"][0]["state"], "failed");
    assert_eq!(status["models"][1]["state"], "serving");
    assert_eq!(status["ready"], true);

    bad.publish(&Shape::mixed());
    while engine.open("bad").is_err() {
        tokio::task::yield_now().await;
    }
    let view = engine.view("bad").expect("it is configured");
    assert_eq!((view.state, view.reason), (ModelState::Serving, None));
    engine.shutdown().await;
}

#[tokio::test]
async fn an_engine_is_not_ready_while_nothing_can_be_read() {
    let empty = Checkpoint::empty();
    let engine = start(config(vec![model("m", &empty.root())]));
    assert_eq!(engine.ready(), Readiness::NotReady("loading m".into()));
    let error = engine.open("m").expect_err("it is loading");
    assert_eq!(error.reason(), "MODEL_LOADING");
    refused(&engine, "m").await;
    let missing = "no model could be loaded: m".to_owned();
    assert_eq!(engine.ready(), Readiness::NotReady(missing));
    engine.shutdown().await;
}

#[tokio::test]
async fn draining_stays_and_shutdown_ends_every_task() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    let empty = Checkpoint::empty();
    let engine = start(config(vec![model("m", &checkpoint.root()), model("e", &empty.root())]));
    serving(&engine, "m").await;
    engine.drain();
    assert_eq!(engine.ready(), Readiness::NotReady("draining".into()));
    assert!(engine.open("m").is_ok(), "requests in progress go on");
    engine.shutdown().await;
    assert!(engine.tasks.is_empty(), "the retries of the bad model ended too");
    let error = engine.open("m").expect_err("it stopped");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::Unavailable, "STOPPING"));
}

#[tokio::test]
async fn two_models_of_one_name_do_not_start() {
    let twice = config(vec![model("m", "/a"), model("m", "/b")]);
    let started = Engine::start(twice, EngineMetrics::default(), StoreMetrics::default());
    assert!(matches!(started, Err(StartError::DuplicateModel(name)) if name == "m"));
}

#[tokio::test]
async fn a_tier_over_its_budget_warns_or_rejects() {
    let mut tier = Tier::new("t", &[2], &[0, 1]);
    let parameters = 2 * 2 * (tier.expert_bytes + 5);
    tier.budget = parameters - 1;
    let checkpoint = Checkpoint::new(&Shape::of(vec![tier.clone()]));
    let mut over = config(vec![model("m", &checkpoint.root())]);
    let engine = start(over.clone());
    let warnings = serving(&engine, "m").await.warnings().to_vec();
    let expected = format!("tier t has {parameters} parameters, its budget is {}", parameters - 1);
    assert_eq!(warnings, [expected.as_str()]);
    engine.shutdown().await;

    over.budget_enforcement = BudgetEnforcement::Reject;
    let engine = start(over.clone());
    let reason = refused(&engine, "m").await;
    assert!(reason.contains(&expected), "{reason}");
    engine.shutdown().await;

    tier.budget = parameters;
    let checkpoint = Checkpoint::new(&Shape::of(vec![tier]));
    over.models = vec![model("m", &checkpoint.root())];
    let engine = start(over);
    assert!(serving(&engine, "m").await.warnings().is_empty());
    engine.shutdown().await;
}

#[tokio::test]
async fn shards_elsewhere_are_read_only_where_that_is_allowed() {
    let elsewhere = tempfile::TempDir::new().expect("a directory");
    let shape = Shape { objects_base: Some(elsewhere.path().into()), ..Shape::mixed() };
    let checkpoint = Checkpoint::new(&shape);
    let mut allowed = model("allowed", &checkpoint.root());
    allowed.allowed_bases = vec![elsewhere.path().display().to_string()];
    let engine = start(config(vec![allowed, model("not", &checkpoint.root())]));
    let generation = serving(&engine, "allowed").await;
    for (key, image) in &checkpoint.blocks {
        let block = generation.read(key.clone(), ReadOptions::demand(soon())).await;
        assert_eq!(&*block.expect("it is allowed").served.bytes, &**image);
    }
    let (_, file) = generation.file("config.json", soon()).await.expect("it is allowed");
    assert_eq!(&*file, shape.files[0].1);
    let reason = refused(&engine, "not").await;
    assert!(reason.contains("allowed_bases"), "{reason}");
    engine.shutdown().await;
}

#[tokio::test]
async fn documents_that_cannot_be_served_say_why() {
    let mut checkpoint = Checkpoint::empty();
    checkpoint.publish(&Shape { revision: 3, ..Shape::mixed() });
    let revisions = checkpoint.path().join("tpad/revisions");
    let document = std::fs::read_to_string(revisions.join("3.json")).expect("it is there");
    let cases: [(u64, String, &str); 4] = [
        (4, "{".into(), "4.json: document: not JSON"),
        (5, document.clone(), "5.json says that it is revision 3"),
        (6, document.replace("\"1.1\"", "\"2.0\""), "format version 2.0"),
        (7, document.replace("\"layers\": [", "\"layers\": [{\"layer\": 77}, "), "/layers/1"),
    ];
    for (revision, text, expected) in cases {
        std::fs::write(revisions.join(format!("{revision}.json")), text).expect("written");
        let root = format!("{}/tpad/revisions/{revision}.json", checkpoint.root());
        let engine = start(config(vec![model("m", &root)]));
        let reason = refused(&engine, "m").await;
        assert!(reason.contains(expected), "{reason:?} does not say {expected:?}");
        engine.shutdown().await;
    }
}

#[tokio::test]
async fn a_changed_index_header_stops_its_model_and_names_the_tier() {
    let mut checkpoint = Checkpoint::empty();
    let manifest = checkpoint.publish(&Shape::mixed());
    let index = manifest.tiers[1].index.expect("it has one");
    checkpoint.flip(&tpad_manifest::index_path(&index.digest), 20);
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let reason = refused(&engine, "m").await;
    assert!(reason.contains("index of tier 7") && reason.contains("digest"), "{reason}");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_reader_keeps_its_generation_over_a_swap() {
    let mut checkpoint = Checkpoint::new(&Shape::mixed());
    let old_blocks = checkpoint.blocks.clone();
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let old = serving(&engine, "m").await;
    let all = Selection { tiers: vec!["7".parse().expect("an id")], ..Selection::default() };
    let selected = old.select(&all, soon()).await.expect("it exists");

    let mut tiers = Shape::mixed().tiers;
    tiers.remove(0);
    checkpoint.publish(&Shape { revision: 2, tiers, ..Shape::mixed() });
    let loaded = engine.reload("m", soon()).await.expect("there is a newer one");
    assert_eq!(loaded.outcome, LoadOutcome::Reloaded);
    assert!(old.retired().is_cancelled() && !loaded.generation.retired().is_cancelled());
    let new = engine.open("m").expect("it is loaded");
    assert_eq!((new.number(), new.revision()), (2, 2));
    assert_eq!((selected.generation().number(), old.revision()), (1, 1));

    // Both read their own bytes under the same keys.
    for n in 0..selected.len() {
        let (key, bytes) = selected.get(n).expect("it was selected");
        let read = |generation: Arc<Generation>| {
            let key = key.clone();
            async move { generation.read(key, ReadOptions::demand(soon())).await }
        };
        let before = read(Arc::clone(selected.generation())).await.expect("it is there");
        let after = read(Arc::clone(&new)).await.expect("it is there");
        assert_eq!(&*before.served.bytes, &*old_blocks[&key]);
        assert_eq!(&*after.served.bytes, &*checkpoint.blocks[&key]);
        assert_eq!(before.served.bytes.len() as u64, bytes);
    }
    let gone = "tier_1b".parse().expect("an id");
    let gone = Selection { tiers: vec![gone], ..Selection::default() };
    assert!(old.select(&gone, soon()).await.is_ok());
    let error = new.select(&gone, soon()).await.expect_err("revision 2 lacks it");
    assert_eq!(error.reason(), "TIER_NOT_FOUND");
    engine.shutdown().await;
}

#[tokio::test]
async fn wrong_and_missing_bytes_are_data_loss_and_only_for_their_block() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    // Behind the padding of 37 bytes lies the first expert.
    checkpoint.flip(&shard_of("tier_1b", 1), 40);
    std::fs::remove_file(checkpoint.path().join(shard_of("tier_10b", 1))).expect("it was there");
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let generation = serving(&engine, "m").await;
    let mut wrong = 0;
    for (key, image) in &checkpoint.blocks {
        let read = generation.read(key.clone(), ReadOptions::demand(soon())).await;
        let text = key.to_string();
        let missing = text.contains("tier_10b");
        if missing || text == "expert tier_1b/0/0 at layer 1" {
            let error = read.expect_err("its bytes are not what was indexed");
            assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
            assert_eq!(error.reason(), "BLOCK_UNREADABLE");
            assert!(error.to_string().contains(&text), "{error}");
            wrong += 1;
        } else {
            assert_eq!(&*read.expect("it is untouched").served.bytes, &**image);
        }
    }
    assert_eq!(wrong, 1 + (8 + 1) * 2);
    engine.shutdown().await;
}

#[tokio::test]
async fn a_changed_index_segment_is_data_loss_for_its_layer_alone() {
    let mut checkpoint = Checkpoint::empty();
    let manifest = checkpoint.publish(&Shape::mixed());
    let index = manifest.tiers[0].index.expect("it has one");
    let last = usize::try_from(index.bytes).expect("small") - 1;
    checkpoint.flip(&tpad_manifest::index_path(&index.digest), last);
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let generation = serving(&engine, "m").await;
    for key in checkpoint.blocks.keys() {
        let record = generation.record(key, soon()).await;
        let text = key.to_string();
        if text.contains("tier_1b") && text.ends_with("layer 5") {
            let error = record.expect_err("its segment was changed");
            assert_eq!(error.kind(), ErrorKind::DataLoss);
            assert!(error.to_string().contains("index of tier tier_1b, layer 5"), "{error}");
        } else {
            record.expect("its segment is untouched");
        }
    }
    engine.shutdown().await;
}

#[tokio::test]
async fn files_are_verified_and_unknown_ones_are_answered_with_those_that_exist() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let generation = serving(&engine, "m").await;
    let (record, bytes) = generation.file("config.json", soon()).await.expect("it is there");
    assert_eq!((record.bytes, &*bytes), (18, &b"{\"hidden_size\": 4}"[..]));
    let error = generation.file("config", soon()).await.expect_err("there is none");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, "FILE_NOT_FOUND"));
    assert!(error.to_string().contains("config.json"), "{error}");
    // What was verified stays; a fresh engine sees what is on disk.
    checkpoint.flip("config.json", 3);
    assert!(generation.file("config.json", soon()).await.is_ok());
    engine.shutdown().await;
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let generation = serving(&engine, "m").await;
    let error = generation.file("config.json", soon()).await.expect_err("it was changed");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::DataLoss, "FILE_UNREADABLE"));
    engine.shutdown().await;
}

#[tokio::test]
async fn counters_equal_what_was_read() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    let metrics = EngineMetrics::default();
    let config = config(vec![model("m", &checkpoint.root())]);
    let engine = Engine::start(config, metrics.clone(), StoreMetrics::default()).expect("started");
    let generation = serving(&engine, "m").await;
    for key in checkpoint.blocks.keys() {
        generation.read(key.clone(), ReadOptions::demand(soon())).await.expect("it is there");
    }
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("it encodes");
    let sum = |name: &str, tier: &str| -> u64 {
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(&format!("tier=\"{tier}\"")));
        lines.map(|line| line.rsplit(' ').next().unwrap_or("").parse::<u64>().unwrap_or(0)).sum()
    };
    assert_eq!(sum("tpad_blocks_served_total", "tier_1b"), 6 * 3);
    assert_eq!(sum("tpad_blocks_served_total", "7"), 3 * 2);
    assert_eq!(sum("tpad_blocks_served_total", "tier_10b"), 8 * 2);
    assert_eq!(sum("tpad_blocks_served_total", "router"), 3 + 2 + 2);
    assert_eq!(sum("tpad_blocks_served_total", "dense"), 2);
    assert_eq!(sum("tpad_bytes_served_total", "7"), 3 * 2 * (512 + 256));
    assert!(text.contains("tpad_model_loads_total{model=\"m\",outcome=\"loaded\"} 1"), "{text}");
    engine.shutdown().await;
}

#[tokio::test]
async fn a_store_that_stays_away_is_one_piece_of_news() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let served = serving(&engine, "m").await;
    // A port that was free a moment ago: nobody answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it has one");
    drop(listener);
    let mut away = model("away", "s3://bucket/x");
    away.origin.endpoint = Some(format!("http://{address}"));
    away.origin.allow_http = true;
    away.origin.retries = 0;
    let mut topics = BTreeSet::new();
    for _ in 0..5 {
        let enforcement = BudgetEnforcement::Warn;
        let place = crate::locate::Place::of(&away.root);
        let shared = served.shared();
        let attempt = crate::load::load(&away, &place, enforcement, || 1, true, shared);
        topics.insert(attempt.await.expect_err("nobody answers").topic());
    }
    assert_eq!(topics.len(), 1, "{topics:?}");
    engine.shutdown().await;
}

#[tokio::test]
async fn retries_of_a_store_that_is_away_are_counted() {
    let metrics = StoreMetrics::default();
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    // Nothing listens on port 1.
    let away = model("away", "http://127.0.0.1:1/m/tpad/revisions/1.json");
    let config = config(vec![away]);
    let engine = Engine::start(config, EngineMetrics::default(), metrics).expect("it starts");
    refused(&engine, "away").await;
    engine.shutdown().await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("it encodes");
    let counted = text.lines().find_map(|line| line.strip_prefix("tpad_origin_retries_total "));
    let counted: u64 = counted.expect("it is there").parse().expect("a number");
    assert!(counted > 0, "{text}");
}
