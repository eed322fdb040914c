//! Models that come, are reloaded and go while the engine runs.

use super::*;

fn read_all(generation: &Arc<Generation>) -> Selection {
    let tiers = generation.manifest().tiers.iter().map(|tier| tier.id.clone()).collect();
    Selection { tiers, ..Selection::default() }
}

/// Reads everything that was selected.
async fn read(selected: &crate::Selected) -> usize {
    for n in 0..selected.len() {
        let (key, _) = selected.get(n).expect("it was selected");
        let read = selected.generation().read(key.clone(), ReadOptions::demand(soon())).await;
        read.unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    selected.len()
}

#[tokio::test]
async fn a_reload_picks_up_what_is_new_and_leaves_what_is_not() {
    let mut checkpoint = Checkpoint::new(&Shape::mixed());
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let first = serving(&engine, "m").await;
    let same = engine.reload("m", soon()).await.expect("it is there");
    assert_eq!(same.outcome, LoadOutcome::Unchanged);
    assert!(Arc::ptr_eq(&same.generation, &first), "caches of index segments stay");
    assert!(!first.retired().is_cancelled());

    checkpoint.publish(&Shape { revision: 2, ..Shape::mixed() });
    let newer = engine.reload("m", soon()).await.expect("it is there");
    assert_eq!((newer.outcome, newer.generation.revision()), (LoadOutcome::Reloaded, 2));
    assert!(newer.generation.number() > first.number());
    engine.shutdown().await;
}

#[tokio::test]
async fn a_reload_that_fails_changes_nothing_and_the_status_says_why() {
    let mut checkpoint = Checkpoint::new(&Shape::mixed());
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let first = serving(&engine, "m").await;
    let broken = checkpoint.path().join("tpad/revisions/2.json");
    std::fs::write(&broken, "{").expect("written");
    let error = engine.reload("m", soon()).await.expect_err("it is no document");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::FailedPrecondition, "LOAD_FAILED"));
    assert!(error.to_string().contains("2.json"), "{error}");
    let view = engine.view("m").expect("it is configured");
    assert_eq!(view.state, ModelState::Serving);
    assert!(view.reason.is_some_and(|reason| reason.contains("2.json")));
    assert!(Arc::ptr_eq(&engine.open("m").expect("it is served"), &first));

    std::fs::remove_file(&broken).expect("it was there");
    checkpoint.publish(&Shape { revision: 2, ..Shape::mixed() });
    engine.reload("m", soon()).await.expect("it is repaired");
    assert_eq!(engine.view("m").expect("it is configured").reason, None);
    engine.shutdown().await;
}

/// Which problems a reload of revision 2 meets, of the shape of revision 1 as
/// `edit` leaves it. Whatever they are, reads go on.
async fn succession(edit: impl FnOnce(&mut Shape)) -> Option<String> {
    let mut checkpoint = Checkpoint::new(&Shape::mixed());
    let engine = start(config(vec![model("m", &checkpoint.root())]));
    let first = serving(&engine, "m").await;
    let mut shape = Shape { revision: 2, bytes_of: Some(1), major: Some(1), ..Shape::mixed() };
    edit(&mut shape);
    checkpoint.publish(&shape);
    let reload = engine.reload("m", soon()).await;
    let view = engine.view("m").expect("it is configured");
    let refused = match reload {
        Ok(loaded) => {
            assert_eq!((view.reason, loaded.generation.revision()), (None, 2));
            None
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
            assert!(Arc::ptr_eq(&engine.open("m").expect("it is served"), &first));
            assert_eq!(view.state, ModelState::Serving);
            view.reason
        }
    };
    engine.shutdown().await;
    refused
}

#[tokio::test]
async fn a_revision_that_breaks_the_served_one_is_refused_with_every_violation() {
    let refused = succession(|shape| {
        shape.bytes_of = None;
        shape.tiers[1].groups = vec![3, 1];
        shape.files[0].1.push(b' ');
    });
    let refused = refused.await.expect("it breaks what is served");
    for violation in [
        "revision 2 would break workers of revision 1",
        "tier 7, group 1: the group is new",
        "expert tier_1b/0/0, layer 1: its bytes differ",
        "expert tier_10b/2/1, layer 5: its bytes differ",
        "expert 7/1/0, layer 2: it is new",
        "router of tier 7, layer 5: its bytes differ",
        "dense tensor model.norm.weight: its bytes differ",
        "files \"config.json\": its bytes differ",
        "tpactl publish --major",
    ] {
        assert!(refused.contains(violation), "{violation}: {refused}");
    }
    // The same with the version that announces it.
    let announced = succession(|shape| (shape.bytes_of, shape.major) = (None, Some(2)));
    assert_eq!(announced.await, None);
}

#[tokio::test]
async fn growth_and_blocks_that_only_moved_are_served() {
    // Every index has another name: its shards have.
    assert_eq!(succession(|_| {}).await, None);
    let grown = |shape: &mut Shape| shape.tiers.push(tier("new", &[2], &[1, 2, 5]));
    assert_eq!(succession(grown).await, None);
    let first = |shape: &mut Shape| shape.tiers.insert(0, tier("new", &[2], &[1, 2, 5]));
    let refused = succession(first).await.expect("TierSets up to a tier would grow");
    assert!(refused.contains("tiers: the order"), "{refused}");
}

fn tier(id: &str, groups: &[u32], layers: &[u32]) -> crate::fixture::Tier {
    crate::fixture::Tier::new(id, groups, layers)
}

#[tokio::test]
async fn models_are_added_when_they_can_be_read_and_not_before() {
    let (one, mut two) = (Checkpoint::new(&Shape::mixed()), Checkpoint::empty());
    let engine = start(config(vec![model("one", &one.root())]));
    serving(&engine, "one").await;
    let mut changes = engine.watch_models();
    changes.mark_unchanged();

    let error = engine.add(model("two", &two.root()), soon()).await.expect_err("it is empty");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, "LOAD_FAILED"));
    assert!(engine.view("two").is_err(), "nothing is left of it");
    assert_eq!(engine.ready(), Readiness::Ready);

    two.publish(&Shape { revision: 7, ..Shape::mixed() });
    let added = engine.add(model("two", &two.root()), soon()).await.expect("it is there now");
    assert_eq!((added.outcome, added.generation.revision()), (LoadOutcome::Loaded, 7));
    assert!(changes.has_changed().expect("the engine lives"));
    let all = added.generation.select(&read_all(&added.generation), soon()).await;
    assert!(read(&all.expect("it exists")).await > 0);

    let error = engine.add(model("two", &one.root()), soon()).await.expect_err("it is taken");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::FailedPrecondition, "MODEL_EXISTS"));
    assert!(error.to_string().contains(&two.root()), "{error}");
    engine.shutdown().await;
}

#[tokio::test]
async fn readers_of_an_unloaded_model_finish_what_they_began() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    let other = Checkpoint::new(&Shape::mixed());
    let models = vec![model("m", &checkpoint.root()), model("other", &other.root())];
    let engine = start(config(models));
    let generation = serving(&engine, "m").await;
    // Selected, and no block of it read yet.
    let selected = generation.select(&read_all(&generation), soon()).await.expect("it exists");

    let unloaded = engine.unload("m").await.expect("it is there");
    assert!(unloaded.generation.is_some_and(|last| Arc::ptr_eq(&last, &generation)));
    assert!(generation.retired().is_cancelled(), "what works for it in the background ends");
    let error = engine.open("m").expect_err("it is gone");
    assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, "MODEL_NOT_FOUND"));
    assert!(error.to_string().contains("other"), "{error}");
    let error = engine.unload("m").await.expect_err("it is gone");
    assert_eq!(error.reason(), "MODEL_NOT_FOUND");
    assert_eq!(engine.ready(), Readiness::Ready);

    assert_eq!(read(&selected).await, 6 * 3 + 3 * 2 + 8 * 2);
    let later = generation.select(&read_all(&generation), soon()).await.expect("it exists");
    assert_eq!(read(&later).await, selected.len(), "even index segments are read still");

    engine.unload("other").await.expect("it is there");
    assert_eq!(engine.ready(), Readiness::NotReady("every model was unloaded".into()));
    let back = engine.add(model("m", &checkpoint.root()), soon()).await.expect("it is there");
    assert!(back.generation.number() > generation.number());
    assert_eq!(engine.ready(), Readiness::Ready);
    engine.shutdown().await;
}

#[tokio::test]
async fn unloading_ends_the_loader_of_a_model_that_never_loaded() {
    let (empty, good) = (Checkpoint::empty(), Checkpoint::new(&Shape::mixed()));
    let mut slow = config(vec![model("empty", &empty.root()), model("good", &good.root())]);
    // It would sleep for longer than any test waits.
    let hour = Duration::from_secs(3600);
    slow.retry = RetryIntervals { first: hour, longest: hour };
    let engine = start(slow);
    refused(&engine, "empty").await;
    serving(&engine, "good").await;
    let unloaded = engine.unload("empty").await.expect("it is configured");
    assert!(unloaded.generation.is_none());
    assert_eq!(engine.models().len(), 1);
    engine.shutdown().await;
    assert!(engine.tasks.is_empty());
}

#[tokio::test]
async fn a_reload_repairs_a_model_whose_loader_waits() {
    let mut checkpoint = Checkpoint::empty();
    let mut slow = config(vec![model("m", &checkpoint.root())]);
    let hour = Duration::from_secs(3600);
    slow.retry = RetryIntervals { first: hour, longest: hour };
    let engine = start(slow);
    refused(&engine, "m").await;
    checkpoint.publish(&Shape::mixed());
    let loaded = engine.reload("m", soon()).await.expect("it is there now");
    assert_eq!(loaded.outcome, LoadOutcome::Loaded);
    assert_eq!(engine.ready(), Readiness::Ready);
    engine.shutdown().await;
}

#[tokio::test]
async fn names_of_models_that_went_leave_the_metrics() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    let (mut registry, metrics) = (Registry::default(), EngineMetrics::default());
    metrics.register(&mut registry);
    let models = config(vec![model("stays", &checkpoint.root())]);
    let engine = Engine::start(models, metrics, StoreMetrics::default()).expect("it starts");
    serving(&engine, "stays").await;
    engine.add(model("goes", &checkpoint.root()), soon()).await.expect("it is there");
    let text = |registry: &Registry| {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).expect("it encodes");
        text
    };
    assert!(text(&registry).contains("goes"));
    engine.unload("goes").await.expect("it is there");
    let after = text(&registry);
    assert!(!after.contains("goes") && after.contains("stays"), "{after}");
    engine.shutdown().await;
}
