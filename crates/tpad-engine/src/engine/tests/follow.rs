//! Roots that are followed.

use super::*;

/// Often enough for a test.
const INTERVAL: Duration = Duration::from_millis(2);

fn following(models: Vec<ModelConfig>) -> EngineConfig {
    EngineConfig { follow: Some(INTERVAL), ..config(models) }
}

/// Writes an activation record.
fn activate(checkpoint: &Checkpoint, number: u64, revision: u64, tiers: Option<&str>) {
    let tiers = tiers.map(|tier| format!("\"default_tier_set\": [\"{tier}\"], "));
    let record = format!(
        "{{\"format_version\": \"1.1\", {}\"activation\": {number}, \"revision\": {revision}}}",
        tiers.unwrap_or_default()
    );
    let path = checkpoint.path().join(format!("tpad/activations/{number}.json"));
    std::fs::create_dir_all(path.parent().expect("it has one")).expect("made");
    // As a whole: a look may come at any time.
    let part = checkpoint.path().join("record");
    std::fs::write(&part, record).expect("written");
    std::fs::rename(part, path).expect("renamed");
}

/// Waits until the model serves what `holds`.
async fn until(engine: &Engine, what: &str, holds: impl Fn(&ModelView) -> bool) -> ModelView {
    let mut changes = engine.changes.subscribe();
    let found = async {
        loop {
            let view = engine.view("m").expect("it is configured");
            if holds(&view) {
                return view;
            }
            changes.changed().await.expect("the engine lives");
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(20), found).await;
    found.unwrap_or_else(|_| panic!("never: {what}"))
}

fn serves(revision: u64) -> impl Fn(&ModelView) -> bool {
    move |view| view.generation.as_ref().is_some_and(|g| g.revision() == revision)
}

/// As many looks as it takes to be sure that nothing comes of them.
async fn looks() {
    tokio::time::sleep(20 * INTERVAL).await;
}

#[tokio::test]
async fn the_highest_revision_is_followed_until_there_is_an_activation_and_then_that_alone() {
    let mut checkpoint = Checkpoint::new(&Shape::mixed());
    let engine = start(following(vec![model("m", &checkpoint.root())]));
    until(&engine, "the first", serves(1)).await;
    checkpoint.publish(&Shape { revision: 2, ..Shape::mixed() });
    until(&engine, "the next", serves(2)).await;
    activate(&checkpoint, 1, 1, None);
    let view = until(&engine, "the activated", serves(1)).await;
    assert_eq!(view.generation.expect("it serves").activation(), Some(1));

    checkpoint.publish(&Shape { revision: 3, ..Shape::mixed() });
    looks().await;
    assert_eq!(engine.open("m").expect("it serves").revision(), 1, "growth activates nothing");
    activate(&checkpoint, 2, 3, None);
    until(&engine, "the second", serves(3)).await;
    // Back: one more record, which no look undoes.
    activate(&checkpoint, 3, 1, None);
    until(&engine, "back", serves(1)).await;
    looks().await;
    assert_eq!(engine.open("m").expect("it serves").revision(), 1);
    engine.shutdown().await;

    let engine = start(following(vec![model("m", &checkpoint.root())]));
    assert_eq!(serving(&engine, "m").await.activation(), Some(3), "a restart, too");
    engine.shutdown().await;
}

#[tokio::test]
async fn an_activation_names_the_default_tiers_and_one_that_says_the_same_swaps_nothing() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    let engine = start(following(vec![model("m", &checkpoint.root())]));
    let first = serving(&engine, "m").await;
    assert_eq!(first.manifest().default_tier_set, ["tier_1b".parse().expect("an id")]);
    activate(&checkpoint, 1, 1, Some("tier_10b"));
    let view = until(&engine, "other tiers", |view| {
        view.generation.as_ref().is_some_and(|g| g.activation() == Some(1))
    });
    let second = view.await.generation.expect("it serves");
    assert_eq!(second.manifest().default_tier_set, ["tier_10b".parse().expect("an id")]);
    assert!(second.number() > first.number() && second.document() == first.document());

    activate(&checkpoint, 2, 1, Some("tier_10b"));
    let view = until(&engine, "the same again", |view| {
        view.generation.as_ref().is_some_and(|g| g.activation() == Some(2))
    });
    assert!(Arc::ptr_eq(&view.await.generation.expect("it serves"), &second));
    engine.shutdown().await;
}

#[tokio::test]
async fn what_is_refused_leaves_in_service_what_is_served_until_another_record_comes() {
    let checkpoint = Checkpoint::new(&Shape::mixed());
    std::fs::write(checkpoint.path().join("tpad/revisions/2.json"), "{}").expect("written");
    activate(&checkpoint, 1, 1, None);
    let engine = start(following(vec![model("m", &checkpoint.root())]));
    let first = serving(&engine, "m").await;
    let bad: [(u64, Option<&str>, &str); 3] =
        [(2, None, "2.json"), (9, None, "9.json"), (1, Some("nowhere"), "nowhere")];
    for (number, (revision, tiers, said)) in (2..).zip(bad) {
        activate(&checkpoint, number, revision, tiers);
        let said = |view: &ModelView| view.reason.as_ref().is_some_and(|why| why.contains(said));
        until(&engine, "a reason", said).await;
        assert!(Arc::ptr_eq(&engine.open("m").expect("it serves"), &first));
    }
    assert_eq!(engine.ready(), Readiness::Ready);
    activate(&checkpoint, 5, 1, None);
    until(&engine, "no reason", |view| view.reason.is_none()).await;
    assert!(Arc::ptr_eq(&engine.open("m").expect("it serves"), &first));
    engine.shutdown().await;
}

#[tokio::test]
async fn a_pinned_revision_and_an_engine_that_does_not_follow_stay_and_an_added_model_follows() {
    let mut checkpoint = Checkpoint::new(&Shape::mixed());
    let pinned = format!("{}/tpad/revisions/1.json", checkpoint.root());
    let engine = start(following(vec![model("pinned", &pinned)]));
    serving(&engine, "pinned").await;
    engine.add(model("m", &checkpoint.root()), soon()).await.expect("it is there");
    let alone =
        start(EngineConfig { follow: None, ..config(vec![model("m", &checkpoint.root())]) });
    serving(&alone, "m").await;
    checkpoint.publish(&Shape { revision: 2, ..Shape::mixed() });
    until(&engine, "an added model follows", serves(2)).await;
    assert_eq!(engine.open("pinned").expect("it serves").revision(), 1);
    let status = engine.status();
    assert!(status.models[0].pinned && !status.models[1].pinned);
    assert_eq!(alone.open("m").expect("it serves").revision(), 1);
    engine.shutdown().await;
    alone.shutdown().await;
}
