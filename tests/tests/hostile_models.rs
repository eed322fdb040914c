//! A daemon whose models are the hostile corpus: each is refused with its place
//! in its status, and an honest model beside them is served.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tpad_client::{Client, FetchExperts};
use tpad_manifest::{Digest, index_path, revision_path};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::compare;
use tpad_tests::daemon::Served;
use tpad_tests::hostile::{Case, Claim, Kind, each, index_around};
use tpad_tests::scene::play;

#[test]
fn hostile_models_are_refused_with_their_place_beside_an_honest_one() {
    play(async |scene| {
        let directory = scene.directory();
        let mixtral = fixture("mixtral");
        let honest = Checkpoint::import(&mixtral, Store::Directory, directory, None).await;
        let mut config = honest.section();
        let mut cases = BTreeMap::new();
        each(|case| {
            // Of the others the reader is told things that no store tells it.
            let told = matches!(case.claim, Claim::Truth | Claim::Whole(_));
            if case.path().is_none() || !told {
                return;
            }
            let name = format!("hostile-{}", cases.len());
            if publish(&case, &directory.join(&name)) {
                let root = directory.join(&name);
                write!(config, "[[models]]\nname = \"{name}\"\nroot = \"{}\"\n", root.display())
                    .expect("writing to a string");
                cases.insert(name, case);
            }
        });
        assert!(cases.len() > 350, "{} cases", cases.len());
        scene.logs().expect("model not loaded");
        scene.logs().expect("tier skipped");
        scene.logs().expect("checkpoint cannot be read");
        let served = Served::start_unready(scene, &config).await;
        let refused = async {
            loop {
                let status = served.status().await;
                let models = status["models"].as_array().cloned().expect("models");
                if models.iter().all(|model| model["state"] != "loading") {
                    return models;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let models = tokio::time::timeout(Duration::from_secs(120), refused).await;
        let mut wrong = Vec::new();
        for model in models.expect("every model is served or refused") {
            let name = model["name"].as_str().expect("a name");
            let Some(case) = cases.remove(name) else { continue };
            let reason = match case.kind {
                // Segments are read when they are needed.
                Kind::Segment => fetch(served.client(), name).await,
                // What a newer version may have written costs its tier alone.
                _ => {
                    let skipped = &model["tiers"][0]["skipped"];
                    let told = model["reason"].as_str().or(skipped.as_str());
                    told.unwrap_or_default().to_owned()
                }
            };
            if !reason.contains(&case.place) || !reason.contains(&case.says) {
                wrong.push(format!("{} {}: {reason}", case.kind, case.name));
            }
        }
        assert!(cases.is_empty(), "{} models have no status", cases.len());
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let files = compare::files(served.client(), "mixtral", &mixtral).await;
        assert!(files > 0);
        served.stop().await;
    });
}

/// Why a model's experts cannot be fetched; nothing when they can.
async fn fetch(client: &Client, model: &str) -> String {
    let request = FetchExperts {
        model: model.to_owned(),
        tiers: vec!["a".to_owned()],
        ..FetchExperts::default()
    };
    let mut blocks = match client.fetch_experts(request).await {
        Ok(blocks) => blocks,
        Err(error) => return error.to_string(),
    };
    while let Some(block) = blocks.next().await {
        if let Err(error) = block {
            return error.to_string();
        }
    }
    String::new()
}

/// Makes a root whose revision, or whose one tier's index, is the case. `false`
/// for cases of other kinds.
fn publish(case: &Case, root: &Path) -> bool {
    let revision = match case.kind {
        Kind::Revision => case.bytes.clone(),
        Kind::Header => {
            let whole = match case.claim {
                Claim::Whole(bytes) => bytes,
                _ => case.bytes.len() as u64,
            };
            let digest = Digest::of(&case.bytes);
            put(root, &index_path(&digest), &case.bytes);
            manifest(&digest, case.bytes.len() as u64, whole).to_string().into_bytes()
        }
        Kind::Segment => {
            let (object, header_bytes) = index_around(&case.bytes);
            let digest = Digest::of(&object[..usize::try_from(header_bytes).expect("short")]);
            put(root, &index_path(&digest), &object);
            manifest(&digest, header_bytes, object.len() as u64).to_string().into_bytes()
        }
        Kind::Shard => return false,
    };
    put(root, &revision_path(1), &revision);
    true
}

/// A manifest of the tier that the corpus' index headers are of.
fn manifest(digest: &Digest, header_bytes: u64, bytes: u64) -> Value {
    json!({
        "format_version": "1.1",
        "model": "hostile",
        "revision": 1,
        "layers": [{"layer": 3}, {"layer": 5}],
        "tiers": [{
            "id": "a",
            "parameter_budget": 100,
            "groups": [{"experts": 2}, {"experts": 1}],
            "index": {"digest": digest.to_string(), "header_bytes": header_bytes, "bytes": bytes},
        }],
    })
}

fn put(root: &Path, path: &str, bytes: &[u8]) {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().expect("it has a directory")).expect("a directory");
    std::fs::write(path, bytes).expect("room");
}
