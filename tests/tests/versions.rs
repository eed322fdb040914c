//! Manifests of other versions: what an older and a newer tpad wrote, as a
//! daemon, its clients and `tpactl` meet it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use tpad_client::{Client, Error, FetchExperts, Kind};
use tpad_manifest::ExpertKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::compare::{self, Compared, Tier};
use tpad_tests::daemon::Served;
use tpad_tests::newer::{self, Novelty};
use tpad_tests::process::Process;
use tpad_tests::scene::{Scene, play};
use tpad_tests::tools;

/// All that mixtral has.
const WHOLE: Compared = Compared { experts: 16, routers: 2, dense: 15 };

/// A revision in a directory, as JSON.
struct Document {
    path: PathBuf,
    value: Value,
}

impl Document {
    fn of(root: &Path, revision: u64) -> Self {
        let path = root.join(format!("tpad/revisions/{revision}.json"));
        let text = std::fs::read(&path).expect("the revision");
        Self { path, value: serde_json::from_slice(&text).expect("it is JSON") }
    }

    fn write(&self) {
        std::fs::write(&self.path, self.value.to_string()).expect("room");
    }
}

async fn import(scene: &Scene) -> (Checkpoint, Document) {
    let original = fixture("mixtral");
    let checkpoint = Checkpoint::import(&original, Store::Directory, scene.directory(), None).await;
    let document = Document::of(Path::new(&checkpoint.root), 1);
    (checkpoint, document)
}

/// Serves it from the real program. Another model keeps it ready when this one
/// is refused.
async fn serve(scene: &Scene, section: &str) -> Process {
    let config = format!("{section}[levels.dram]\ncapacity = \"16MiB\"\n");
    Process::serve(scene.directory(), &config).await
}

fn ask(daemon: &Process, arguments: &[&str]) -> Output {
    tpactl().args(["--addr", &daemon.address()]).args(arguments).output().expect("tpactl runs")
}

/// What the daemon says of its model number `n`.
fn status(daemon: &Process, n: usize) -> Value {
    let output = ask(daemon, &["status", "--json"]);
    assert!(output.status.success(), "{}", said(&output));
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    status["models"][n].clone()
}

fn check(root: &str) -> Output {
    tpactl().args(["manifest", "check", root]).output().expect("tpactl runs")
}

/// The warnings as one text, for searching.
fn warnings(status: &Value) -> String {
    let warnings = status["warnings"].as_array().expect("a list");
    warnings.iter().filter_map(Value::as_str).collect::<Vec<&str>>().join("\n")
}

async fn connect(daemon: &Process) -> Client {
    Client::connect(&daemon.address()).await.expect("the daemon answers")
}

/// Fetches everything that the one tier of an import has.
async fn whole(client: &Client) -> Compared {
    let tier = Tier { id: "base", groups: vec![(0..8).collect()] };
    compare::whole_model(client, "mixtral", &fixture("mixtral"), &[tier]).await
}

/// The error of a fetch of one expert of a tier.
async fn refused(client: &Client, model: &str, tier: &str) -> Error {
    let tier = tier.parse().expect("an id");
    let request = FetchExperts {
        model: model.to_owned(),
        keys: vec![ExpertKey { tier, group: 0, expert: 0 }],
        ..FetchExperts::default()
    };
    client.fetch_experts(request).await.map(|_| ()).expect_err("it is refused")
}

fn reason(error: &Error) -> &str {
    error.refusal().map_or("", |refusal| refusal.reason.as_str())
}

fn stop(daemon: Process) {
    let (status, log) = daemon.terminate();
    assert!(status.success(), "{status}\n{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn the_golden_1_0_loads_with_default_placement_and_metadata_alone() {
    play(async |scene| {
        let root = scene.directory().join("golden");
        std::fs::create_dir_all(root.join("tpad/revisions")).expect("new directories");
        let golden = tools::workspace().join("crates/tpad-manifest/tests/golden/manifest-1.0.json");
        std::fs::copy(golden, root.join("tpad/revisions/0.json")).expect("room");
        let root = root.display();
        let section = format!("[[models]]\nname = \"golden\"\nroot = \"{root}\"\n");
        let daemon = serve(scene, &section).await;
        let model = status(&daemon, 0);
        assert_eq!(model["state"], "serving", "{model:#}");
        assert_eq!(model["revision"], 0);
        let tiers = model["tiers"].as_array().expect("a list");
        let found: Vec<(&Value, &Value)> =
            tiers.iter().map(|tier| (&tier["id"], &tier["placement"])).collect();
        // A tier without a placement gets the default, which warms nothing.
        let expected = [("tier_1b", "hbm"), ("10", "dram"), ("tier_100b", "object_store")]
            .map(|(id, placement)| (json!(id), json!(placement)));
        assert_eq!(found, expected.each_ref().map(|(id, placement)| (id, placement)));
        assert!(tiers.iter().all(|tier| tier["skipped"].is_null()), "{model:#}");

        let client = connect(&daemon).await;
        for tier in ["tier_1b", "10", "tier_100b"] {
            let error = refused(&client, "golden", tier).await;
            assert_eq!(error.kind(), Kind::FailedPrecondition, "{tier}: {error}");
            assert_eq!(reason(&error), "TIER_WITHOUT_INDEX", "{tier}: {error}");
        }
        let out = scene.directory().join("out").display().to_string();
        let fetch = ["fetch", "--model", "golden", "--tier", "10", "--group", "0"];
        let fetched = ask(&daemon, &[&fetch[..], &["--expert", "0", "--out", &out]].concat());
        assert_eq!(fetched.status.code(), Some(7), "{}", said(&fetched));
        stop(daemon);
    });
}

#[test]
fn a_1_0_document_with_indexes_serves_every_byte() {
    play(async |scene| {
        let (checkpoint, mut document) = import(scene).await;
        // The bare fields, and the places of the bytes: all else is missing.
        let old = &mut document.value;
        old["format_version"] = json!("1.0");
        let kept = ["format_version", "revision", "layers", "tiers", "dense"];
        old.as_object_mut().expect("an object").retain(|name, _| kept.contains(&name.as_str()));
        old["layers"] = json!([{"layer": 0}, {"layer": 1}]);
        let kept = ["id", "parameter_budget", "groups", "index"];
        let tier = old["tiers"][0].as_object_mut().expect("an object");
        tier.retain(|name, _| kept.contains(&name.as_str()));
        old["tiers"][0]["groups"] = json!([{"experts": 8}]);
        document.write();
        let daemon = serve(scene, &checkpoint.section()).await;
        let model = status(&daemon, 0);
        assert_eq!(model["tiers"][0]["placement"], "object_store", "{model:#}");
        assert_eq!(model["warnings"], json!([]), "{model:#}");
        assert_eq!(whole(&connect(&daemon).await).await, WHOLE);
        let checked = check(&checkpoint.root);
        assert!(checked.status.success(), "{}", said(&checked));
        stop(daemon);
    });
}

#[test]
fn a_newer_minor_serves_every_byte_and_warns_of_what_it_does_not_know() {
    play(async |scene| {
        let (checkpoint, mut document) = import(scene).await;
        let new = &mut document.value;
        new["format_version"] = json!("1.99");
        new["layers"][1]["kind"] = json!("sideways");
        new["scoring"] = json!({"function": "entmax", "groups": "median"});
        let tier = &mut new["tiers"][0];
        tier["placement"] = json!("holographic");
        tier["compatibility"]["quantization"] = json!("q99");
        for reference in ["/dense", "/tiers/0/index"] {
            let reference = new.pointer_mut(reference).expect("an index");
            grow_index(Path::new(&checkpoint.root), reference);
        }
        newer::grow_document(new);
        document.write();
        let daemon = serve(scene, &checkpoint.section()).await;
        let model = status(&daemon, 0);
        assert_eq!(model["state"], "serving", "{model:#}");
        assert_eq!(model["tiers"][0]["placement"], "object_store", "a hint takes its default");
        assert!(model["tiers"][0]["skipped"].is_null(), "{model:#}");
        let warnings = warnings(&model);
        for word in ["holographic", "sideways", "entmax", "median"] {
            assert!(warnings.contains(word), "{word} is not in {warnings}");
        }
        let client = connect(&daemon).await;
        assert_eq!(whole(&client).await, WHOLE);
        let files = compare::files(&client, "mixtral", &fixture("mixtral")).await;
        assert_eq!(files, 2);
        let checked = check(&checkpoint.root);
        assert!(checked.status.success(), "{}", said(&checked));
        stop(daemon);
    });
}

#[test]
fn a_newer_major_is_refused_in_words_and_spares_the_other_models() {
    play(async |scene| {
        let (checkpoint, mut document) = import(scene).await;
        let good = scene.directory().join("good");
        std::fs::create_dir(&good).expect("a new directory");
        let other = Checkpoint::import(&fixture("gpt_oss"), Store::Directory, &good, None).await;
        document.value["format_version"] = json!("2.0");
        // What its other fields mean is not this version's to judge.
        document.value["tiers"] = json!("may be anything");
        document.write();
        let section = format!("{}{}", checkpoint.section(), other.section());
        let daemon = serve(scene, &section).await;
        let model = status(&daemon, 0);
        assert_eq!(model["state"], "failed", "{model:#}");
        let why = model["reason"].as_str().expect("a reason");
        assert_words(why);
        assert_eq!(status(&daemon, 1)["state"], "serving");

        let client = connect(&daemon).await;
        let error = refused(&client, "mixtral", "base").await;
        assert_eq!(reason(&error), "MODEL_NOT_LOADED", "{error}");
        let files = compare::files(&client, "gpt_oss", &fixture("gpt_oss")).await;
        assert!(files > 0);
        let checked = check(&checkpoint.root);
        assert_eq!(checked.status.code(), Some(1), "{}", said(&checked));
        assert_words(&said(&checked));
        let (status, log) = daemon.terminate();
        assert!(status.success(), "{status}\n{log}");
    });
}

#[test]
fn a_newer_major_leaves_in_service_what_was_served_before() {
    play(async |scene| {
        let (checkpoint, mut document) = import(scene).await;
        let served = Served::start(scene, &checkpoint.section()).await;
        document.path = document.path.with_file_name("2.json");
        document.value["format_version"] = json!("2.0");
        document.value["revision"] = json!(2);
        document.write();
        scene.logs().allow("2.0");
        let deadline = Instant::now() + Duration::from_secs(30);
        let reloaded = served.daemon().engine().reload("mixtral", deadline).await;
        assert_words(&reloaded.expect_err("it is refused").to_string());
        let model = &served.status().await["models"][0];
        assert_eq!((&model["state"], &model["revision"]), (&json!("serving"), &json!(1)));
        assert_eq!(whole(served.client()).await, WHOLE);
        served.stop().await;
    });
}

#[test]
fn an_unknown_tier_without_its_index_object_does_not_disturb_the_known_ones() {
    play(async |scene| {
        let (checkpoint, mut document) = import(scene).await;
        let absent = "ab".repeat(32);
        let tiers = document.value["tiers"].as_array_mut().expect("a list");
        tiers.push(json!({
            "id": "tier_next",
            "parameter_budget": 1_000_000,
            "groups": [{"experts": 64, "lanes": 3}],
            "placement": "hbm",
            "compatibility": {"format_version": "1.7", "requires": ["folded_experts"]},
            "index": {"digest": absent, "header_bytes": 4096, "bytes": 1_048_576},
        }));
        document.value["format_version"] = json!("1.7");
        document.write();
        assert!(!Path::new(&checkpoint.root).join("tpad/index").join(&absent).exists());
        let daemon = serve(scene, &checkpoint.section()).await;
        let model = status(&daemon, 0);
        assert_eq!(model["state"], "serving", "{model:#}");
        let why = model["tiers"][1]["skipped"].as_str().expect("why it is skipped");
        assert!(why.contains("folded_experts"), "{why}");
        assert!(model["tiers"][0]["skipped"].is_null(), "{model:#}");

        let client = connect(&daemon).await;
        assert_eq!(whole(&client).await, WHOLE);
        let error = refused(&client, "mixtral", "tier_next").await;
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        assert_eq!(reason(&error), "TIER_SKIPPED", "{error}");
        assert!(error.to_string().contains("folded_experts"), "{error}");
        let error = refused(&client, "mixtral", "tier_nobody").await;
        assert_eq!(reason(&error), "TIER_NOT_FOUND", "{error}");
        let checked = check(&checkpoint.root);
        assert!(checked.status.success(), "{}", said(&checked));
        assert!(said(&checked).contains("folded_experts"), "{}", said(&checked));
        stop(daemon);
    });
}

/// Half of the experts in a tier of its own, as a newer version writes it.
const GROWN: &str = r#"
default_tier_set = ["base", "next"]

[[tiers]]
id = "base"
[[tiers.groups]]
experts = "0-3"

[[tiers]]
id = "next"
[[tiers.groups]]
experts = "4-7"
"#;

#[test]
fn a_tier_whose_index_says_what_is_unknown_is_skipped_and_the_others_serve_every_byte() {
    play(async |scene| {
        for (novelty, words) in [
            (Novelty::Projection, "projection 77 is unknown"),
            (Novelty::Part, "part 77 is unknown"),
            (Novelty::Dtype, "dtype BF61 has no known size"),
        ] {
            let directory = scene.directory().join(format!("{novelty:?}"));
            std::fs::create_dir(&directory).expect("a new directory");
            let (store, original) = (Store::Directory, fixture("mixtral"));
            let checkpoint = Checkpoint::import(&original, store, &directory, Some(GROWN)).await;
            let root = Path::new(&checkpoint.root);
            let mut document = Document::of(root, 1);
            let new = &mut document.value;
            new["format_version"] = json!("1.99");
            new["tiers"][1]["compatibility"]["dtypes"] = json!([]);
            replace_index(root, &mut new["tiers"][1]["index"], |object| {
                newer::strange_index(object, novelty)
            });
            document.write();
            let daemon = serve(scene, &checkpoint.section()).await;
            let model = status(&daemon, 0);
            assert_eq!(model["state"], "serving", "{model:#}");
            let why = model["tiers"][1]["skipped"].as_str().expect("why it is skipped");
            assert!(why.contains(words) && why.contains("upgrade tpad"), "{why}");
            assert!(model["tiers"][0]["skipped"].is_null(), "{model:#}");

            let client = connect(&daemon).await;
            let base = Tier { id: "base", groups: vec![(0..4).collect()] };
            let found = compare::whole_model(&client, "mixtral", &original, &[base]).await;
            assert_eq!(found, Compared { experts: 8, routers: 2, dense: 15 });
            let error = refused(&client, "mixtral", "next").await;
            assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
            assert_eq!(reason(&error), "TIER_SKIPPED", "{error}");
            assert!(error.to_string().contains(words), "{error}");
            // The set names it, and the mask says what became of it.
            let mask = ask(&daemon, &["mask", "--model", "mixtral", "--json"]);
            assert!(mask.status.success(), "{}", said(&mask));
            let mask: Value = serde_json::from_slice(&mask.stdout).expect("JSON");
            assert_eq!(mask["tiers"][0]["id"], "base", "{mask}");
            assert_eq!(mask["masked"], json!([{"tier": "next", "reason": "skipped_tier"}]));
            stop(daemon);

            let checked = check(&checkpoint.root);
            assert!(checked.status.success(), "{}", said(&checked));
            assert!(said(&checked).contains(words), "{}", said(&checked));
            for command in [&["manifest", "show", "--index"][..], &["plan"]] {
                let output = tpactl().args(command).arg(&checkpoint.root).output();
                let output = output.expect("tpactl runs");
                assert!(output.status.success(), "{command:?}: {}", said(&output));
                let all = String::from_utf8_lossy(&output.stdout).into_owned() + &said(&output);
                assert!(all.contains("next") && all.contains(words), "{command:?}: {all}");
            }
        }
    });
}

/// What was found, what is supported, what to do.
fn assert_words(message: &str) {
    for words in ["2.0", "supports 1.x", "upgrade tpad"] {
        assert!(message.contains(words), "{words} is not in {message}");
    }
}

/// Replaces an index object by a grown one.
fn grow_index(root: &Path, reference: &mut Value) {
    replace_index(root, reference, newer::grow_index);
}

/// Replaces an index object, which is named by what it says.
fn replace_index(
    root: &Path,
    reference: &mut Value,
    change: impl FnOnce(&[u8]) -> (Vec<u8>, Value),
) {
    let directory = root.join("tpad/index");
    let digest = reference["digest"].as_str().expect("a digest");
    let object = std::fs::read(directory.join(digest)).expect("the index");
    std::fs::remove_file(directory.join(digest)).expect("it can be deleted");
    let (object, grown) = change(&object);
    assert_ne!(grown["digest"], reference["digest"]);
    let digest = grown["digest"].as_str().expect("a digest");
    std::fs::write(directory.join(digest), object).expect("room");
    *reference = grown;
}
