//! The store stops under load: what is resident is served, what is not fails
//! soon, and all is well again when the store is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tpad_client::{Client, Error, FetchExperts, Kind};
use tpad_manifest::ExpertKey;
use tpad_tests::checkpoint::{Checkpoint, fixture, origin_in, said, tpactl_of};
use tpad_tests::compare::exact;
use tpad_tests::process::Process;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};
use tpad_tests::tap::Tap;
use tpad_tests::weed::Weed;

/// Callers of blocks that are in host memory, and of blocks that are not.
const RESIDENT: usize = 6;
const MISSES: u32 = 3;

/// Between two calls of one caller.
const PACE: Duration = Duration::from_millis(25);

/// How long a miss may take once it is known that the store is silent: one
/// second is the daemon's own patience, the rest is this machine's.
const SOON: Duration = Duration::from_millis(2500);

/// From the store's return until every block can be had.
const RECOVERY: Duration = Duration::from_secs(5);

/// A hanging store is known by its timeouts: 10 s for a first answer, and once
/// two had none a second for each attempt that is left.
const KNOWN: Duration = Duration::from_secs(25);

#[test]
fn a_store_that_is_frozen_for_a_minute_fails_only_what_is_not_resident() {
    play(async |scene| {
        let stage = Stage::set(scene).await;
        let outage = stage.begin(|| stage.weed.freeze()).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let after = outage.end(|| stage.weed.thaw()).await;
        assert!(after.known <= KNOWN, "{:?}", after.known);
        stage.publish().await;
        stage.swap(after).await;
    });
}

#[test]
fn a_store_that_refuses_connections_fails_only_what_is_not_resident() {
    play(async |scene| {
        let stage = Stage::set(scene).await;
        let outage = stage.begin(|| stage.tap.close()).await;
        // The daemon is cut off; the publisher is not.
        stage.publish().await;
        let load = stage.load();
        assert_eq!(load.status.code(), Some(3), "{}", said(&load));
        tokio::time::sleep(Duration::from_secs(15)).await;
        let after = outage.end(|| stage.tap.open()).await;
        assert!(after.known <= Duration::from_secs(5), "{:?}", after.known);
        stage.swap(after).await;
    });
}

/// A daemon on a store of its own, and the next revision of its model.
struct Stage {
    weed: &'static Weed,
    tap: Tap,
    daemon: Process,
    root: String,
    next: Checkpoint,
    truth: Arc<[Reference; 2]>,
}

/// The load while the store is away.
struct Outage {
    began: Instant,
    stop: watch::Sender<bool>,
    resident: JoinSet<Vec<Duration>>,
    misses: JoinSet<Vec<Miss>>,
}

/// The load after the store's return.
struct After {
    /// From the store's end until the first miss said so.
    known: Duration,
    stop: watch::Sender<bool>,
    resident: JoinSet<Vec<Duration>>,
}

/// One call for a block that is not resident.
#[derive(Debug)]
struct Miss {
    began: Instant,
    ended: Instant,
    error: Option<Error>,
}

impl Stage {
    async fn set(scene: &Scene) -> Self {
        let weed = Weed::alone();
        let original = fixture("mixtral");
        let first = Checkpoint::import_into(weed, &original, scene.directory(), None).await;
        let changed = changed(&original, &scene.directory().join("mixtral"));
        let aside = scene.directory().join("next");
        std::fs::create_dir(&aside).expect("a new directory");
        let next = Checkpoint::import_into(weed, &changed, &aside, None).await;
        let truth = Arc::new([Reference::read(&original), Reference::read(&changed)]);
        let tap = Tap::start(weed.address());
        let section = first.section_through(&tap.endpoint()).replacen(
            "[models.origin]",
            &format!("allowed_bases = [\"{}\"]\n[models.origin]", next.root),
            1,
        );
        let config = format!("{section}[levels.dram]\ncapacity = \"8MiB\"\n");
        let daemon = Process::serve(scene.directory(), &config).await;
        let stage = Self { weed, tap, daemon, root: first.root, next, truth };
        // Layer 0 and the index of layer 1 are there before the store goes.
        let client = stage.client().await;
        for (expert, layer) in (0..8).map(|expert| (expert, 0)).chain([(0, 1)]) {
            let revision = fetch(&client, &stage.truth, expert, layer).await.expect("it comes");
            assert_eq!(revision, 1);
        }
        stage
    }

    async fn client(&self) -> Client {
        Client::connect(&self.daemon.address()).await.expect("it answers")
    }

    /// Starts the load and takes the store away.
    async fn begin(&self, take_away: impl FnOnce()) -> Outage {
        let (stop, stopped) = watch::channel(false);
        let mut resident = JoinSet::new();
        for n in 0..RESIDENT {
            let (client, truth) = (self.client().await, Arc::clone(&self.truth));
            let (stopped, expert) = (stopped.clone(), u32::try_from(n).expect("small"));
            resident.spawn(async move {
                let mut took = Vec::new();
                while !*stopped.borrow() {
                    let began = Instant::now();
                    let end = fetch(&client, &truth, expert, 0).await;
                    end.unwrap_or_else(|error| unreachable!("a resident block: {error}"));
                    took.push(began.elapsed());
                    tokio::time::sleep(PACE).await;
                }
                took
            });
        }
        let began = Instant::now();
        take_away();
        let mut misses = JoinSet::new();
        for expert in 1..=MISSES {
            let (client, truth) = (self.client().await, Arc::clone(&self.truth));
            misses.spawn(async move {
                let mut calls = Vec::new();
                loop {
                    let began = Instant::now();
                    let error = fetch(&client, &truth, expert, 1).await.err();
                    let done = error.is_none();
                    calls.push(Miss { began, ended: Instant::now(), error });
                    if done {
                        return calls;
                    }
                    tokio::time::sleep(PACE).await;
                }
            });
        }
        Outage { began, stop, resident, misses }
    }

    /// Makes the changed weights the model's second revision.
    async fn publish(&self) {
        let origin = origin_in(self.weed, &self.root);
        let from = origin_in(self.weed, &self.next.root);
        let document = from.get("tpad/revisions/1.json", 1 << 20).await.expect("it is there");
        let mut document: Value = serde_json::from_slice(&document).expect("JSON");
        document["revision"] = json!(2);
        document["model_version"] = json!("2.0");
        document["objects_base"] = json!(self.next.root);
        for index in from.list("tpad/index").await.expect("its indexes") {
            let bytes = from.get(&index.path, 1 << 20).await.expect("an index");
            origin.put(&index.path, bytes).await.expect("it is written");
        }
        // Small files are read below the model's own root, where they are equal.
        let document = document.to_string().into_bytes();
        origin.create("tpad/revisions/2.json", document.into()).await.expect("it is written");
    }

    fn load(&self) -> std::process::Output {
        let mut load = tpactl_of(self.weed);
        load.args(["--addr", &self.daemon.address(), "load", "mixtral"]);
        load.output().expect("tpactl runs")
    }

    /// Swaps to the second revision under what load there is, and ends.
    async fn swap(self, after: After) {
        let load = self.load();
        assert!(load.status.success(), "{}", said(&load));
        let client = self.client().await;
        for layer in [0, 1] {
            for expert in 0..8 {
                let revision = fetch(&client, &self.truth, expert, layer).await;
                assert_eq!(revision.expect("the store is back"), 2);
            }
        }
        after.stop.send_replace(true);
        let took: Vec<Duration> = after.resident.join_all().await.into_iter().flatten().collect();
        assert!(took.len() > RESIDENT * 100, "{} calls", took.len());
        drop(client);
        let (status, log) = self.daemon.terminate();
        assert!(status.success(), "{status}\n{log}");
    }
}

impl Outage {
    /// Gives the store back and waits until every miss has its block.
    async fn end(self, give_back: impl FnOnce()) -> After {
        let back = Instant::now();
        give_back();
        let misses = tokio::time::timeout(RECOVERY, self.misses.join_all()).await;
        let misses = misses.expect("every block can be had again");
        let failed = || misses.iter().flatten().filter(|miss| miss.error.is_some());
        for Miss { error, .. } in failed() {
            let error = error.as_ref().expect("a failure");
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            let refusal = error.refusal().expect("the daemon says so itself");
            assert_eq!(refusal.reason, "BLOCK_UNREADABLE", "{error}");
            assert!(refusal.retry_after.is_some(), "{error}");
        }
        let known = failed().map(|miss| miss.ended).min().expect("a miss fails");
        let later: Vec<Duration> = failed()
            .filter(|miss| miss.began > known)
            .map(|miss| miss.ended - miss.began)
            .collect();
        assert!(later.len() >= 20, "{} misses failed once it was known", later.len());
        let slowest = later.iter().max().expect("there are some");
        assert!(*slowest <= SOON, "a miss took {slowest:?}");
        assert!(failed().all(|miss| miss.ended < back + RECOVERY), "none fails after");
        After { known: known - self.began, stop: self.stop, resident: self.resident }
    }
}

/// Fetches one expert and compares it with the revision that the reply names.
async fn fetch(
    client: &Client,
    truth: &[Reference; 2],
    expert: u32,
    layer: u32,
) -> Result<u64, Error> {
    let tier = "base".parse().expect("an id");
    let request = FetchExperts {
        model: "mixtral".to_owned(),
        blocks: vec![(ExpertKey { tier, group: 0, expert }, layer)],
        ..FetchExperts::default()
    };
    let mut stream = client.fetch_experts(request).await?;
    let revision = stream.start().revision;
    let truth = &truth[usize::try_from(revision - 1).expect("one of two")];
    let block = stream.next().await.expect("one block or an error")?;
    exact(&block, &truth.experts[&(layer, expert)]);
    assert!(stream.next().await.is_none());
    Ok(revision)
}

/// A copy of a checkpoint in which every weight is another.
fn changed(original: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir(to).expect("a new directory");
    for entry in original.read_dir().expect("the checkpoint") {
        let path = entry.expect("an entry").path();
        if !path.is_file() {
            continue;
        }
        let mut bytes = std::fs::read(&path).expect("a file");
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let header = bytes[..8].try_into().expect("eight bytes");
            let data = 8 + usize::try_from(u64::from_le_bytes(header)).expect("small");
            bytes[data..].iter_mut().for_each(|byte| *byte ^= 0x55);
        }
        std::fs::write(to.join(path.file_name().expect("a name")), bytes).expect("room");
    }
    to.to_owned()
}
