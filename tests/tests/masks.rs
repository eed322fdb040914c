//! Routing masks through a real daemon: the same for programs in Rust, for
//! `tpactl` and for Python, and followed over a reload and a drain.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tpad_client::{
    Client, FetchExperts, FetchedMask, GetMask, Kind, LoadModel, MaskEvent, MaskWatch, Residency,
    WatchMask,
};
use tpad_manifest::{CostClass, ExpertKey, MaskReason, RoutingMask, SetOrigin, TierSet};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::daemon::Served;
use tpad_tests::scene::{Scene, play};
use tpad_tests::tools;

/// Mixtral's eight experts of two layers in three tiers, one of two groups.
const PLAN: &str = r#"
default_tier_set = ["small"]

[tier_sets]
both = ["small", 7]
pair = ["small"]

[[tiers]]
id = "small"
k_tier = 2
k_expert = 2
[[tiers.groups]]
experts = "6, 2"

[[tiers]]
id = 7
k_tier = 3
k_group = 2
k_expert = 3
[[tiers.groups]]
experts = "7"
[[tiers.groups]]
experts = "0, 1"

[[tiers]]
id = "large"
[[tiers.groups]]
experts = "3-5"
"#;

/// The configuration's sets; `pair` is the manifest's too, and hides it.
const SETS: &str = "[models.tier_sets]\npair = [\"large\", \"later\"]\n";

async fn import(scene: &Scene) -> Checkpoint {
    Checkpoint::import(&fixture("mixtral"), Store::Directory, scene.directory(), Some(PLAN)).await
}

/// Serves the checkpoint with the configuration's sets.
async fn serve(scene: &Scene, checkpoint: &Checkpoint) -> Served {
    // One set of the configuration hides the manifest's, which it says.
    scene.logs().allow("pair");
    Served::start(scene, &format!("{}{SETS}", checkpoint.section())).await
}

fn named(tiers: &[&str]) -> TierSet {
    TierSet::Tiers(tiers.iter().map(|tier| (*tier).to_owned()).collect())
}

fn small() -> Value {
    json!({"id": "small", "k_group": 1, "k_expert": 2,
           "groups": [{"id": 0, "experts": [true, true]}]})
}

fn seven() -> Value {
    json!({"id": "7", "k_group": 2, "k_expert": 3,
           "groups": [{"id": 0, "experts": [true]}, {"id": 1, "experts": [true, true]}]})
}

fn large() -> Value {
    // Its k_expert is the checkpoint's own.
    json!({"id": "large", "k_group": 1, "k_expert": 2,
           "groups": [{"id": 0, "experts": [true, true, true]}]})
}

fn out(tier: &str) -> Value {
    json!({"tier": tier, "reason": "not_in_tier_set"})
}

fn unknown(tier: &str) -> Value {
    json!({"tier": tier, "reason": "unknown_tier"})
}

/// Requests as `tpactl` and Python take them, with what they answer.
fn cases() -> Vec<(Vec<&'static str>, Value)> {
    let mask = |tiers: Value, k_tier: u32, masked: Value| json!({"tiers": tiers, "k_tier": k_tier, "masked": masked, "revision": 1});
    vec![
        (vec![], mask(json!([small()]), 1, json!([out("7"), out("large")]))),
        (
            // In the manifest's order; an unknown tier is told once.
            vec!["--tiers", "7,gone,small,gone"],
            mask(json!([small(), seven()]), 2, json!([out("large"), unknown("gone")])),
        ),
        (vec!["--named", "both"], mask(json!([small(), seven()]), 2, json!([out("large")]))),
        (
            vec!["--named", "pair"],
            mask(json!([large()]), 1, json!([out("small"), out("7"), unknown("later")])),
        ),
        (vec!["--up-to", "large"], mask(json!([small(), seven(), large()]), 3, json!([]))),
        (vec!["--up-to", "7"], mask(json!([small(), seven()]), 2, json!([out("large")]))),
    ]
}

/// What `tpactl mask` or the Python script prints.
async fn printed(command: Command) -> (Option<i32>, String) {
    let mut command = command;
    let run = tokio::task::spawn_blocking(move || command.output());
    let output = run.await.expect("it is joined").expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said(&output);
    (output.status.code(), if output.status.success() { text } else { said })
}

async fn tpactl_mask(served: &Served, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = tpactl();
    command.args(["--addr", &served.address(), "mask", "--model", "mixtral", "--json"]);
    command.args(arguments);
    printed(command).await
}

async fn python(served: &Served, arguments: &[&str]) -> String {
    let address = served.address();
    let (_, address) = address.split_once("://").expect("a URL");
    let mut script = Command::new(tools::tool("python"));
    script.env("PYTHONDONTWRITEBYTECODE", "1");
    script.arg(tools::workspace().join("tests/python/masks.py"));
    script.arg(tools::workspace().join("proto"));
    script.arg(tools::workspace().join("docs/masks.md"));
    script.args([address, "mixtral"]).args(arguments);
    let (code, text) = printed(script).await;
    assert_eq!(code, Some(0), "{text}");
    text
}

fn parsed(text: &str) -> Value {
    let parsed = serde_json::from_str(text);
    assert!(parsed.is_ok(), "{parsed:?}: {text}");
    parsed.expect("checked above")
}

#[test]
fn tpactl_and_python_print_the_same_masks() {
    play(async |scene| {
        let served = serve(scene, &import(scene).await).await;
        for (arguments, expected) in cases() {
            let (code, text) = tpactl_mask(&served, &arguments).await;
            assert_eq!(code, Some(0), "{arguments:?}: {text}");
            assert_eq!(parsed(&text), expected, "{arguments:?}");
            let text = python(&served, &[&["mask"], &arguments[..]].concat()).await;
            assert_eq!(parsed(&text), expected, "{arguments:?}");
        }
        let (code, text) = tpactl_mask(&served, &["--named", "nobody"]).await;
        assert_eq!(code, Some(4), "{text}");
        assert!(text.contains("named are both, pair"), "{text}");
        let (code, text) = tpactl_mask(&served, &["--tiers", "gone"]).await;
        assert_eq!(code, Some(7), "{text}");
        served.stop().await;
    });
}

#[test]
fn a_mask_names_sources_and_comes_once_for_an_etag() {
    play(async |scene| {
        let served = serve(scene, &import(scene).await).await;
        let client = served.client();
        let get = GetMask::of("mixtral", named(&["7", "gone"]));
        let first = client.routing_mask(get.clone()).await.expect("a mask");
        let mask = first.mask.clone().expect("it is new");
        assert_eq!((mask.revision, &mask.origin), (1, &SetOrigin::Tiers));
        let [sources] = &mask.tiers[0].sources[..] else { panic!("{:?}", mask.tiers[0].sources) };
        assert_eq!(sources.layers, [0, 1], "both layers have the same experts");
        let experts: Vec<Vec<u32>> = sources
            .groups
            .iter()
            .map(|group| group.iter().map(|source| source.expert).collect())
            .collect();
        assert_eq!(experts, [vec![7], vec![0, 1]]);
        assert_eq!(mask.masked[2].reason, MaskReason::UnknownTier);

        let again = GetMask { etag: Some(first.etag.clone()), ..get.clone() };
        let again = client.routing_mask(again).await.expect("an answer");
        assert_eq!(again, FetchedMask { mask: None, ..first.clone() });
        // A daemon that was started apart says the same.
        let other = serve(scene, &import_beside(scene).await).await;
        let there = other.client().routing_mask(get).await.expect("a mask");
        assert_eq!(there.etag, first.etag);
        let error = client.routing_mask(GetMask::of("mixtral", named(&[]))).await;
        let error = error.expect_err("nothing is left");
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        assert_eq!(error.refusal().map(|refusal| &*refusal.reason), Some("MASK_EMPTY"));
        other.stop().await;
        served.stop().await;
    });
}

async fn import_beside(scene: &Scene) -> Checkpoint {
    let directory = scene.directory().join("beside");
    std::fs::create_dir(&directory).expect("a new directory");
    Checkpoint::import(&fixture("mixtral"), Store::Directory, &directory, Some(PLAN)).await
}

async fn resident(client: &Client, level: CostClass, layers: &[u32]) -> RoutingMask {
    let resident = Some(Residency { level, layers: layers.to_vec() });
    let get = GetMask { resident, ..GetMask::of("mixtral", named(&["small", "7"])) };
    client.routing_mask(get).await.expect("a mask").mask.expect("it is new")
}

#[test]
fn what_was_fetched_is_resident_and_the_rest_has_its_price() {
    play(async |scene| {
        let served = serve(scene, &import(scene).await).await;
        let client = served.client();
        let (code, text) = tpactl_mask(&served, &["--resident", "dram"]).await;
        assert_eq!(code, Some(7), "nothing was fetched yet: {text}");
        let key = ExpertKey { tier: "7".parse().expect("an id"), group: 1, expert: 0 };
        let request = FetchExperts {
            model: "mixtral".to_owned(),
            keys: vec![key],
            layers: vec![1],
            ..FetchExperts::default()
        };
        let mut blocks = client.fetch_experts(request).await.expect("it exists");
        while let Some(block) = blocks.next().await {
            block.expect("right bytes");
        }
        let mask = resident(client, CostClass::Dram, &[1]).await;
        let layers = mask.resident.expect("it was asked for").layers;
        assert_eq!(layers.len(), 1);
        let found: Vec<Vec<Vec<CostClass>>> = layers[0]
            .tiers
            .iter()
            .map(|tier| tier.groups.iter().map(|group| group.costs.clone()).collect())
            .collect();
        let store = CostClass::ObjectStore;
        assert_eq!(found, [vec![vec![store; 2]], vec![vec![store], vec![CostClass::Dram, store]]]);
        // The static part is what it is without the question.
        assert!(mask.tiers.iter().all(|tier| tier.groups.iter().all(|g| g.ones() == g.experts())));
        let (code, text) =
            tpactl_mask(&served, &["--up-to", "7", "--resident", "dram", "--layers", "1"]).await;
        assert_eq!(code, Some(0), "{text}");
        let text = parsed(&text);
        let group = &text["resident"]["layers"][0]["tiers"][1]["groups"][1];
        assert_eq!(
            *group,
            json!({"id": 1, "experts": [true, false], "costs": ["dram", "object_store"]})
        );
        // At the level of the store nothing is masked, at any layer.
        let all = resident(client, store, &[]).await.resident.expect("it was asked for");
        let numbers: Vec<u32> = all.layers.iter().map(|layer| layer.layer).collect();
        assert_eq!(numbers, [0, 1]);
        let mut groups = all.layers.iter().flat_map(|l| &l.tiers).flat_map(|tier| &tier.groups);
        assert!(groups.all(|group| group.experts.ones() == group.experts.experts()));
        served.stop().await;
    });
}

/// The next event, which must come soon.
async fn next(watch: &mut MaskWatch) -> Option<Result<MaskEvent, tpad_client::Error>> {
    let event = tokio::time::timeout(Duration::from_secs(60), watch.next());
    event.await.expect("the watch says something")
}

async fn mask(watch: &mut MaskWatch) -> FetchedMask {
    match next(watch).await {
        Some(Ok(MaskEvent::Mask(mask))) => mask,
        other => {
            assert!(other.is_none(), "no mask: {other:?}");
            unreachable!("the watch ended");
        }
    }
}

/// Writes the next revision: the same document but for `change`.
fn publish(checkpoint: &Checkpoint, number: u64, change: impl FnOnce(&mut Value)) {
    let revisions = Path::new(&checkpoint.root).join("tpad/revisions");
    let last = revisions.join(format!("{}.json", number - 1));
    let mut document = parsed(&std::fs::read_to_string(last).expect("a revision"));
    document["revision"] = number.into();
    change(&mut document);
    std::fs::write(revisions.join(format!("{number}.json")), document.to_string()).expect("room");
}

#[test]
fn a_watch_follows_the_model_and_ends_at_the_drain() {
    play(async |scene| {
        let checkpoint = import(scene).await;
        let served = serve(scene, &checkpoint).await;
        let admin = served.client().admin();
        let client = served.connect().await;
        let mut watch = client
            .watch_routing_mask(WatchMask::of("mixtral", TierSet::Default))
            .await
            .expect("it is served");
        let first = mask(&mut watch).await;
        let known = WatchMask {
            etag: Some(first.etag.clone()),
            ..WatchMask::of("mixtral", TierSet::Default)
        };
        let mut second = client.watch_routing_mask(known).await.expect("it is served");
        assert_eq!(mask(&mut second).await, FetchedMask { mask: None, ..first.clone() });

        // A reload that changes nothing is no news: what comes next is revision 2.
        admin.reload_model("mixtral").await.expect("it is loaded");
        publish(&checkpoint, 2, |document| {
            document["default_tier_set"] = json!(["small", 7]);
            // Requests without a TierSet route otherwise.
            document["model_version"] = json!("2.0");
        });
        admin.reload_model("mixtral").await.expect("it is loaded");
        let newer = mask(&mut watch).await;
        assert_eq!(mask(&mut second).await, newer);
        assert_eq!((first.revision, newer.revision), (1, 2));
        assert_ne!(newer.etag, first.etag);
        assert!(newer.generation > first.generation);
        let tiers = newer.mask.clone().expect("it is new").tiers;
        let ids: Vec<&str> = tiers.iter().map(|tier| &*tier.tier).collect();
        assert_eq!(ids, ["small", "7"]);

        // Without the model there is no mask, and the watch waits for one.
        admin.unload_model("mixtral").await.expect("it is there");
        let Some(Ok(MaskEvent::None { reason, message })) = next(&mut watch).await else {
            panic!("the model went")
        };
        assert!(message.contains("mixtral"), "{reason}: {message}");

        // One that begins with what its client has gets all of it after such a
        // while: the client may have forgotten it.
        let root = checkpoint.root.clone();
        let load = LoadModel { model: "mixtral".to_owned(), root, ..LoadModel::default() };
        admin.load_model(load.clone()).await.expect("it is loaded");
        let back = mask(&mut watch).await;
        assert_eq!((&back.etag, back.mask.is_some()), (&newer.etag, true));
        let known = WatchMask {
            etag: Some(back.etag.clone()),
            ..WatchMask::of("mixtral", TierSet::Default)
        };
        let mut third = client.watch_routing_mask(known).await.expect("it is served");
        assert_eq!(mask(&mut third).await.mask, None);
        admin.unload_model("mixtral").await.expect("it is there");
        assert!(matches!(next(&mut third).await, Some(Ok(MaskEvent::None { .. }))));
        admin.load_model(load).await.expect("it is loaded");
        assert_eq!(mask(&mut third).await.mask, back.mask);
        assert!(matches!(next(&mut watch).await, Some(Ok(MaskEvent::None { .. }))));
        assert_eq!(mask(&mut watch).await.mask, back.mask);

        let stopped = tokio::spawn(served.stop());
        let end = next(&mut watch).await.expect("a drain is told").expect_err("the end");
        assert_eq!(end.kind(), Kind::Unavailable, "{end}");
        assert_eq!(end.refusal().map(|refusal| &*refusal.reason), Some("DRAINING"));
        assert!(next(&mut watch).await.is_none(), "nothing follows the end");
        drop((watch, second, third, client, admin));
        tokio::time::timeout(Duration::from_secs(20), stopped)
            .await
            .expect("watches do not hold a drain up")
            .expect("it stops");
    });
}

#[test]
fn the_routers_example_in_the_documentation_runs() {
    play(async |scene| {
        let served = serve(scene, &import(scene).await).await;
        let text = python(&served, &["route"]).await;
        assert_eq!(text.trim(), "the example routes as described");
        served.stop().await;
    });
}
