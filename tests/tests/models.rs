//! Several models in one daemon.

use std::path::Path;
use std::time::Duration;

use tpad_client::{Kind, ModelState};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::compare;
use tpad_tests::daemon::Served;
use tpad_tests::scene::play;

#[test]
fn a_bad_model_does_not_stop_the_others_and_is_served_once_it_is_there() {
    play(async |scene| {
        let directory = scene.directory();
        let good = Checkpoint::import(&fixture("mixtral"), Store::Directory, directory, None).await;
        let late = directory.join("late");
        std::fs::create_dir(&late).expect("a new directory");
        let config = format!(
            "{}[[models]]\nname = \"late\"\nroot = \"{}\"\n",
            good.section(),
            late.display()
        );
        scene.logs().expect("late");
        let served = Served::start_unready(scene, &config).await;
        let client = served.client();
        state(&served, "mixtral", ModelState::Serving).await;
        state(&served, "late", ModelState::Failed).await;

        // Ready, though not complete; what is missing has its reason.
        assert_eq!(served.http("/readyz").await.0, 200);
        let status = served.status().await;
        let reason = status["models"][1]["reason"].as_str().unwrap_or_default();
        assert!(reason.contains("revision"), "{status:#}");
        let files = compare::files(client, "mixtral", &fixture("mixtral")).await;
        assert!(files > 0);
        let error = client.fetch_file("late", "config.json").await.expect_err("it is not served");
        assert!([Kind::Unavailable, Kind::FailedPrecondition].contains(&error.kind()), "{error}");

        publish(&fixture("gpt_oss"), &late);
        state(&served, "late", ModelState::Serving).await;
        let files = compare::files(client, "late", &fixture("gpt_oss")).await;
        assert!(files > 0);
        served.stop().await;
    });
}

/// Fills a directory with a checkpoint and its revision.
fn publish(original: &Path, root: &Path) {
    for entry in original.read_dir().expect("the checkpoint") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, root.join(path.file_name().expect("a name"))).expect("room");
    }
    let imported = Checkpoint::import_in_place(root, None);
    assert_eq!(imported.model, "late");
}

/// Waits until a model is in this state.
async fn state(served: &Served, name: &str, wanted: ModelState) {
    let reached = async {
        loop {
            let models = served.client().list_models().await.expect("the daemon answers");
            let model = models.iter().find(|model| model.name == name).expect("it is configured");
            if model.state == wanted {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(60), reached).await;
    assert!(in_time.is_ok(), "{name} is not {wanted:?}: {:#}", served.status().await);
}
