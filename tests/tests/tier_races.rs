//! Two publishers at once, and one that is interrupted.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tpad_tests::checkpoint::{Store, said, tpactl, upload};
use tpad_tests::growing::{Growing, Published, bring};
use tpad_tests::scene::{Scene, play};
use tpad_tests::tap::{Fault, Tap};
use tpad_tests::weed::Weed;

/// A debug build on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn add(growing: &Growing, id: &str, from: &str, endpoint: Option<&str>) -> Command {
    let mut command = tpactl();
    command.args(["tier", "add", &growing.root, "--id", id, "--from", from, "--json"]);
    command.args(["--budget", "10M", "--placement", "dram", "--k-expert", "2"]);
    if let Some(endpoint) = endpoint {
        command.env("AWS_ENDPOINT_URL", endpoint);
    }
    command
}

/// A run that has read the newest revision and waits for its checkpoint, which
/// comes when it is let go.
struct Waiting {
    child: tokio::process::Child,
    tap: Tap,
}

impl Waiting {
    async fn start(growing: &Growing, id: &str, from: &Path) -> Self {
        let tap = Tap::start(Weed::shared().address());
        tap.set(Fault::Held);
        let from = upload(from, &Weed::shared().fresh_root(id)).await;
        let mut command =
            tokio::process::Command::from(add(growing, id, &from, Some(&tap.endpoint())));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.kill_on_drop(true).spawn().expect("tpactl starts");
        let started = Instant::now();
        while tap.faults() == 0 {
            assert!(started.elapsed() < PATIENCE, "it does not read its checkpoint");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { child, tap }
    }

    async fn end(self) -> Output {
        let output = tokio::time::timeout(PATIENCE, self.child.wait_with_output()).await;
        output.expect("it ends").expect("it can be waited for")
    }
}

fn tiers(document: &Value) -> Vec<&str> {
    let tiers = document["tiers"].as_array().expect("tiers");
    tiers.iter().map(|tier| tier["id"].as_str().expect("text")).collect()
}

async fn race(scene: &Scene, store: Store) {
    let directory = scene.directory();
    let model = Published::mixtral(directory).await;
    let growing = model.plant(store, directory, "raced").await;
    let [one, other] = ["one", "other"].map(|id| bring(id, directory));
    let late = Waiting::start(&growing, "one", &one).await;
    let other = other.display().to_string();
    let first = add(&growing, "other", &other, None).output().expect("tpactl runs");
    assert!(first.status.success(), "{}", said(&first));
    late.tap.set(Fault::None);
    let lost = late.end().await;
    assert_eq!(lost.status.code(), Some(7), "{}", said(&lost));
    let error: Value = serde_json::from_slice(&lost.stderr).expect("one line of JSON");
    let message = error["error"]["message"].as_str().expect("a message");
    assert_eq!(error["error"]["kind"], "failed_precondition");
    assert!(
        message.contains("revision 2 was published by someone else in the meantime: run it again"),
        "{message}"
    );
    model.is_untouched_at(&growing).await;
    assert_eq!(growing.revisions().await.len(), 2);
    growing.check();
    growing.holds("other").await;
    let one = one.display().to_string();
    let again = add(&growing, "one", &one, None).output().expect("tpactl runs");
    assert!(again.status.success(), "{}", said(&again));
    let report: Value = serde_json::from_slice(&again.stdout).expect("JSON");
    assert_eq!((&report["outcome"], &report["revision"]), (&"written".into(), &3.into()));
    assert!(report["reused_bytes"].as_u64() > Some(0), "the first upload is used: {report}");
    let revisions = growing.revisions().await;
    assert_eq!(tiers(&revisions[1])[1..], ["other"]);
    assert_eq!(tiers(&revisions[2])[1..], ["other", "one"]);
    assert_eq!(revisions[1]["tiers"][1], revisions[2]["tiers"][1]);
    growing.check();
    growing.holds("one").await;
    growing.holds("other").await;
    model.is_untouched_at(&growing).await;
}

#[test]
fn of_two_tiers_added_to_a_directory_at_once_the_second_is_told_and_succeeds_when_repeated() {
    play(async |scene| race(scene, Store::Directory).await);
}

#[test]
fn of_two_tiers_added_to_s3_at_once_the_second_is_told_and_succeeds_when_repeated() {
    play(async |scene| race(scene, Store::S3).await);
}

#[test]
fn an_interrupted_tier_add_says_so_loses_nothing_and_completes_when_repeated() {
    play(async |scene| {
        let directory = scene.directory();
        let model = Published::mixtral(directory).await;
        let growing = model.plant(Store::Directory, directory, "interrupted").await;
        let from = bring("big", directory);
        let running = Waiting::start(&growing, "big", &from).await;
        let pid = running.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().expect("kill runs");
        assert!(sent.success(), "it was gone");
        let output = running.end().await;
        assert_eq!(output.status.code(), Some(130), "{}", said(&output));
        let error: Value = serde_json::from_slice(&output.stderr).expect("one line of JSON");
        assert_eq!(error["error"]["kind"], "interrupted");
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains("nothing was published"), "{message}");
        model.is_untouched_at(&growing).await;
        assert_eq!(growing.revisions().await.len(), 1);
        growing.check();
        let from = from.display().to_string();
        let again = add(&growing, "big", &from, None).output().expect("tpactl runs");
        assert!(again.status.success(), "{}", said(&again));
        growing.check();
        growing.holds("big").await;
    });
}
