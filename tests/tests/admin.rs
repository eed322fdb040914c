//! Administration through a real daemon: as programs ask for it and as `tpactl`
//! does.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tpad_client::{Client, FetchExperts, Kind, LoadModel, LoadOutcome};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::compare;
use tpad_tests::daemon::Served;
use tpad_tests::process::Process;
use tpad_tests::scene::{Scene, play};

async fn import(scene: &Scene, name: &str) -> Checkpoint {
    Checkpoint::import(&fixture(name), Store::Directory, scene.directory(), None).await
}

fn load(checkpoint: &Checkpoint) -> LoadModel {
    let (model, root) = (checkpoint.model.clone(), checkpoint.root.clone());
    LoadModel { model, root, ..LoadModel::default() }
}

/// All experts of a model.
fn all(model: &str, tiers: &[String]) -> FetchExperts {
    FetchExperts { model: model.to_owned(), tiers: tiers.to_vec(), ..FetchExperts::default() }
}

async fn tiers(client: &Client, model: &str) -> Vec<String> {
    let models = client.list_models().await.expect("the daemon answers");
    let found = models.into_iter().find(|found| found.name == model);
    found.expect("it is served").tiers
}

fn ran(command: &mut Command) -> Value {
    let output = command.output().expect("tpactl runs");
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn code(command: &mut Command) -> Option<i32> {
    command.output().expect("tpactl runs").status.code()
}

#[test]
fn a_second_model_is_loaded_while_the_first_is_read() {
    play(async |scene| {
        let (first, second) = (import(scene, "mixtral").await, import(scene, "gpt_oss").await);
        let served = Served::start(scene, &first.section()).await;
        let client = served.client();
        let tiers_of_first = tiers(client, "mixtral").await;
        let mut reading =
            client.fetch_experts(all("mixtral", &tiers_of_first)).await.expect("a stream");
        reading.next().await.expect("a block").expect("right bytes");

        let loaded = client.admin().load_model(load(&second)).await.expect("it is loaded");
        assert_eq!((loaded.outcome, loaded.revision), (LoadOutcome::Loaded, 1));
        let files = compare::files(client, "gpt_oss", &fixture("gpt_oss")).await;
        assert!(files > 0);
        let tiers_of_second = tiers(client, "gpt_oss").await;
        let mut blocks = client.fetch_experts(all("gpt_oss", &tiers_of_second)).await.expect("one");
        let mut count = 0;
        while let Some(block) = blocks.next().await {
            block.expect("right bytes");
            count += 1;
        }
        assert!(count > 0);
        let mut rest = 0;
        while let Some(block) = reading.next().await {
            block.expect("right bytes");
            rest += 1;
        }
        assert!(rest > 0);
        let status = served.status().await;
        assert_eq!(status["models"][1]["name"], "gpt_oss", "{status:#}");
        served.stop().await;
    });
}

#[test]
fn streams_outlast_their_model_and_new_ones_do_not_find_it() {
    play(async |scene| {
        let (first, second) = (import(scene, "mixtral").await, import(scene, "gpt_oss").await);
        let config = format!("{}{}", first.section(), second.section());
        let served = Served::start(scene, &config).await;
        let client = served.connect().await;
        let tiers = tiers(&client, "mixtral").await;
        let expected = {
            let mut blocks = client.fetch_experts(all("mixtral", &tiers)).await.expect("a stream");
            let mut count = 0;
            while let Some(block) = blocks.next().await {
                block.expect("right bytes");
                count += 1;
            }
            count
        };
        let mut streams = Vec::new();
        for _ in 0..8 {
            let mut stream = client.fetch_experts(all("mixtral", &tiers)).await.expect("a stream");
            stream.next().await.expect("a block").expect("right bytes");
            streams.push(stream);
        }
        let unloaded = client.admin().unload_model("mixtral").await.expect("it is there");
        assert_eq!(unloaded.revision, 1);
        let gone = client.fetch_experts(all("mixtral", &tiers)).await.expect_err("it is gone");
        assert_eq!(gone.kind(), Kind::NotFound, "{gone}");
        for mut stream in streams {
            let mut count = 1;
            while let Some(block) = stream.next().await {
                block.expect("right bytes");
                count += 1;
            }
            assert_eq!(count, expected, "a stream of the model that went");
        }
        // Its metrics went with it; the other model is as it was.
        assert!(compare::files(&client, "gpt_oss", &fixture("gpt_oss")).await > 0);
        let again = client.admin().load_model(load(&first)).await.expect("the name is free");
        assert_eq!(again.outcome, LoadOutcome::Loaded);
        assert!(compare::files(&client, "mixtral", &fixture("mixtral")).await > 0);
        served.stop().await;
    });
}

#[test]
fn a_newer_revision_is_picked_up_by_a_load() {
    play(async |scene| {
        let checkpoint = import(scene, "mixtral").await;
        let served = Served::start(scene, &checkpoint.section()).await;
        let admin = served.client().admin();
        let same = admin.reload_model("mixtral").await.expect("it is loaded");
        assert_eq!((same.outcome, same.revision), (LoadOutcome::Unchanged, 1));
        // The same checkpoint, in another document.
        let revisions = Path::new(&checkpoint.root).join("tpad/revisions");
        let text = std::fs::read_to_string(revisions.join("1.json")).expect("a revision");
        let mut next: Value = serde_json::from_str(&text).expect("JSON");
        next["revision"] = 2.into();
        std::fs::write(revisions.join("2.json"), next.to_string()).expect("room");
        let newer = admin.reload_model("mixtral").await.expect("it is loaded");
        assert_eq!((newer.outcome, newer.revision), (LoadOutcome::Reloaded, 2));
        assert!(newer.generation > same.generation);
        // One that cannot be served changes nothing but the status.
        std::fs::write(revisions.join("3.json"), "{").expect("room");
        let refused = admin.reload_model("mixtral").await.expect_err("it is no document");
        let reason = refused.refusal().map(|refusal| refusal.reason.clone());
        assert_eq!(reason.as_deref(), Some("LOAD_FAILED"), "{refused}");
        let status = served.status().await;
        assert_eq!(status["models"][0]["revision"], 2);
        assert!(status["models"][0]["reason"].is_string(), "{status:#}");
        assert!(compare::files(served.client(), "mixtral", &fixture("mixtral")).await > 0);
        served.stop().await;
    });
}

#[test]
fn tpactl_loads_unloads_and_drains() {
    play(async |scene| {
        let (first, second) = (import(scene, "mixtral").await, import(scene, "gpt_oss").await);
        let daemon = Process::serve(scene.directory(), &first.section()).await;
        let address = daemon.address();
        let call = |arguments: &[&str]| {
            let mut command = tpactl();
            command.args(["--addr", &address, "--json"]).args(arguments);
            command
        };
        let loaded = ran(&mut call(&["load", "gpt_oss", &second.root]));
        assert_eq!(loaded["outcome"], "loaded", "{loaded}");
        assert_eq!(loaded["revision"], 1);
        assert_eq!(ran(&mut call(&["load", "gpt_oss"]))["outcome"], "unchanged");
        assert_eq!(code(&mut call(&["load", "gpt_oss", &second.root])), Some(7));
        assert_eq!(code(&mut call(&["load", "nobody"])), Some(4));
        let empty = scene.directory().join("empty");
        std::fs::create_dir(&empty).expect("a new directory");
        assert_eq!(code(call(&["load", "none"]).arg(&empty)), Some(4));
        let models = ran(&mut call(&["models"]));
        assert_eq!(models["models"].as_array().map(Vec::len), Some(2), "{models:#}");
        let unloaded = ran(&mut call(&["unload", "mixtral"]));
        assert_eq!(unloaded["revision"], 1, "{unloaded}");
        assert_eq!(code(&mut call(&["unload", "mixtral"])), Some(4));
        assert_eq!(ran(&mut call(&["drain"]))["deadline_seconds"], 30.0);
        let (status, log) = daemon.ended().await;
        assert!(status.success(), "{status}\n{log}");
        assert!(log.contains("a client asked for it"), "{log}");
        assert_eq!(code(&mut call(&["models"])), Some(3), "nobody listens any more");
    });
}
