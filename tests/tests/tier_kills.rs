//! `tpactl tier add`, killed at any moment, again and again.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tpad_tests::checkpoint::{Store, said, tpactl};
use tpad_tests::growing::{Growing, Published, bring};
use tpad_tests::scene::{Scene, play};

/// Kills in each store.
const KILLS: usize = 100;

/// For every so many models the first moment is drawn from when a shard is
/// there: what comes then is short.
const LATE: usize = 3;

/// How long a run takes is measured anew for every so many models: what else the machine does
/// comes and goes.
const TIMED: usize = 16;

/// How far a run was when it was killed.
#[derive(Clone, Copy, Debug, Default)]
struct Phases {
    nothing: usize,
    shards: usize,
    index: usize,
    revision: usize,
}

fn add(root: &str, from: &Path) -> Command {
    let mut command = tpactl();
    command.args(["tier", "add", root, "--id", "big", "--budget", "10M", "--k-expert", "2"]);
    command.args(["--placement", "dram", "--from"]).arg(from);
    command
}

/// When to kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// So long after the start.
    Start(Duration),
    /// So long after the first shard is there.
    Shard(Duration),
}

/// Runs it and kills it at that moment, unless it ends before.
async fn kill(growing: &Growing, from: &Path, moment: Moment) {
    let mut command = tokio::process::Command::from(add(&growing.root, from));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().expect("tpactl starts");
    let after = match moment {
        Moment::Start(after) => after,
        Moment::Shard(after) => {
            while growing.list("tpad/shards").await.is_empty()
                && child.try_wait().expect("it can be asked").is_none()
            {}
            after
        }
    };
    match tokio::time::timeout(after, child.wait()).await {
        Ok(status) => assert!(status.expect("waited").success(), "a run that was not killed"),
        Err(_) => child.kill().await.expect("it can be killed"),
    }
}

impl Phases {
    async fn count(&mut self, growing: &Growing, indexes: usize) {
        let shards = growing.list("tpad/shards").await;
        let shards = shards.iter().any(|entry| entry.path.ends_with(".safetensors"));
        let phase = if growing.revisions().await.len() > 1 {
            &mut self.revision
        } else if growing.list("tpad/index").await.len() > indexes {
            &mut self.index
        } else if shards {
            &mut self.shards
        } else {
            &mut self.nothing
        };
        *phase += 1;
    }
}

/// What must hold whenever it was killed: there is the old revision or the new
/// one, whole, and what was there is what it was.
async fn whole(model: &Published, growing: &Growing) {
    model.is_untouched_at(growing).await;
    growing.check();
    let revisions = growing.revisions().await;
    assert!(matches!(revisions.len(), 1 | 2), "{revisions:?}");
    if let [old, new] = &*revisions {
        let records = old["tiers"].as_array().expect("tiers");
        assert_eq!(new["tiers"].as_array().expect("tiers")[..records.len()], records[..]);
        for field in ["dense", "files", "layers", "scoring", "default_tier_set"] {
            assert_eq!(old[field], new[field], "{field}");
        }
    }
}

async fn completes(model: &Published, growing: &Growing, from: &Path) {
    let output = add(&growing.root, from).output().expect("tpactl runs");
    assert!(output.status.success(), "{}: {}", growing.root, said(&output));
    assert_eq!(growing.revisions().await.len(), 2);
    whole(model, growing).await;
    growing.holds("big").await;
}

#[expect(clippy::print_stdout, reason = "it is shown when the test fails, with the seed")]
async fn survives(scene: &Scene, store: Store) {
    let seed: u64 = rand::random();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let directory = scene.directory();
    let model = Published::mixtral(directory).await;
    let from = bring("big", directory);
    let mut usual = Duration::ZERO;
    let mut phases = Phases::default();
    let (mut killed, mut models) = (0, 0);
    while killed < KILLS {
        if models % TIMED == 0 {
            let mut runs = Vec::new();
            for n in 0..3 {
                let growing = model.plant(store, directory, &format!("timed-{models}-{n}")).await;
                let started = Instant::now();
                let output = add(&growing.root, &from).output().expect("tpactl runs");
                runs.push(started.elapsed());
                assert!(output.status.success(), "{}", said(&output));
            }
            runs.sort_unstable();
            usual = runs[1];
        }
        let growing = model.plant(store, directory, &format!("killed-{models}")).await;
        let indexes = growing.list("tpad/index").await.len();
        let late = models % LATE == 0;
        models += 1;
        // A second kill, over what the first one left.
        for first in [true, false] {
            if growing.revisions().await.len() > 1 || killed == KILLS {
                break;
            }
            let moment = if first && late {
                Moment::Shard(usual.mul_f64(random.random_range(0.0..0.1)))
            } else {
                Moment::Start(usual.mul_f64(random.random_range(0.0..1.2)))
            };
            println!("{} {moment:?} of {usual:?}, seed {seed}", growing.root);
            kill(&growing, &from, moment).await;
            killed += 1;
            phases.count(&growing, indexes).await;
            whole(&model, &growing).await;
        }
        completes(&model, &growing, &from).await;
    }
    println!("killed with {phases:?} there");
    let Phases { nothing, shards, index, revision } = phases;
    assert!(
        nothing > 0 && shards + index > 0 && revision > 0,
        "kills missed a phase: {phases:?}, a run takes {usual:?}, seed {seed}"
    );
}

#[test]
fn a_hundred_kills_of_tier_add_leave_a_directory_whole_and_it_completes() {
    play(async |scene| survives(scene, Store::Directory).await);
}

#[test]
fn a_hundred_kills_of_tier_add_leave_s3_whole_and_it_completes() {
    play(async |scene| survives(scene, Store::S3).await);
}
