//! A model of four times the memory that it may use.

use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;
use tpad_client::{Client, Error, FetchExperts, FetchedBlock, Kind};
use tpad_manifest::ExpertKey;
use tpad_tests::checkpoint::{Checkpoint, Store};
use tpad_tests::process::Process;
use tpad_tests::scene::play;
use tpad_tests::shards::{self, Planned};

const MIB: u64 = 1 << 20;
const CAPACITY_BYTES: u64 = 128 * MIB;
/// What the daemon may use besides: a tenth for what lies around the blocks,
/// and its own code, buffers and stacks.
const BOUND_BYTES: u64 = CAPACITY_BYTES + CAPACITY_BYTES / 10 + 256 * MIB;

const LAYERS: u32 = 4;
const EXPERTS: u32 = 32;
const HIDDEN: u64 = 1024;
const INNER: u64 = 683;
const CLIENTS: usize = 16;

/// Half a gigabyte twice, from a store on the same two cores, in a debug build.
const PATIENCE: Duration = Duration::from_secs(240);

fn name(layer: u32, expert: u32, part: &str) -> String {
    format!("model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight")
}

fn tensors(layer: u32) -> Vec<Planned> {
    let mut tensors = vec![Planned::new(
        format!("model.layers.{layer}.mlp.gate.weight"),
        "BF16",
        &[u64::from(EXPERTS), HIDDEN],
    )];
    for expert in 0..EXPERTS {
        for (part, shape) in
            [("gate", [INNER, HIDDEN]), ("up", [INNER, HIDDEN]), ("down", [HIDDEN, INNER])]
        {
            tensors.push(Planned::new(name(layer, expert, part), "BF16", &shape));
        }
    }
    tensors
}

/// Every block `passes` times, in an order that `seed` shuffles.
fn order(passes: u32, seed: u64) -> Vec<(u32, u32)> {
    let layers = (0..passes).flat_map(|_| 0..LAYERS);
    let mut order: Vec<(u32, u32)> =
        layers.flat_map(|layer| (0..EXPERTS).map(move |expert| (layer, expert))).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order
}

#[test]
fn a_model_of_four_times_the_capacity_is_served_within_it() {
    play(async |scene| {
        let directory = scene.directory().join("model");
        std::fs::create_dir(&directory).expect("a new directory");
        shards::write_config(&directory, EXPERTS);
        let mut bytes = 0;
        for layer in 0..LAYERS {
            let tensors = tensors(layer);
            bytes += tensors.iter().map(Planned::len).sum::<u64>();
            shards::write(&directory.join(format!("{layer}.safetensors")), &tensors);
        }
        assert!(bytes >= 4 * CAPACITY_BYTES, "{bytes}");
        // From S3: the page cache of a directory would count as the daemon's.
        let checkpoint = Checkpoint::import(&directory, Store::S3, scene.directory(), None).await;
        let config =
            format!("{}[levels.dram]\ncapacity = \"{CAPACITY_BYTES}\"\n", checkpoint.section());
        let daemon = Process::serve(scene.directory(), &config).await;

        let outcomes = fetch_all(&daemon.address(), &order(2, 1), None).await;
        let failed: Vec<&Error> = outcomes.iter().filter_map(|o| o.as_ref().err()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
        check_peak(&daemon);

        // Deadlines that many cold reads cannot keep: each answer is right or
        // says that it is late or that there is no room, and nothing is stuck.
        let outcomes =
            fetch_all(&daemon.address(), &order(2, 2), Some(Duration::from_millis(100))).await;
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            let kind = error.kind();
            let known = [Kind::DeadlineExceeded, Kind::ResourceExhausted];
            assert!(known.contains(&kind), "{kind:?}: {error}");
        }
        let outcomes = fetch_all(&daemon.address(), &order(1, 3), None).await;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:#?}");
        check_peak(&daemon);

        let (status, log) = daemon.terminate();
        assert!(status.success(), "{status}\n{log}");
    });
}

fn check_peak(daemon: &Process) {
    let peak = daemon.peak_bytes();
    let place = daemon.meter();
    assert!(peak <= BOUND_BYTES, "{} MiB of {} MiB, {place:?}", peak / MIB, BOUND_BYTES / MIB);
    // A peak below what must be resident would be a broken meter.
    assert!(peak >= CAPACITY_BYTES / 4, "{} MiB, {place:?}", peak / MIB);
}

/// Fetches these blocks with all clients, each block checked as it comes.
async fn fetch_all(
    address: &str,
    order: &[(u32, u32)],
    deadline: Option<Duration>,
) -> Vec<Result<(), Error>> {
    let mut tasks = JoinSet::new();
    let order: Arc<[(u32, u32)]> = order.into();
    let client = Client::connect(address).await.expect("the daemon answers");
    let tier = client.describe_model("model").await.expect("it is served").summary.tiers.remove(0);
    for n in 0..CLIENTS {
        let (order, tier) = (Arc::clone(&order), tier.clone());
        let client = Client::connect(address).await.expect("the daemon answers");
        let client = client.with_deadline(deadline);
        tasks.spawn(async move {
            let mut outcomes = Vec::new();
            for (layer, expert) in order.iter().skip(n).step_by(CLIENTS) {
                outcomes.push(fetch(&client, &tier, *layer, *expert).await);
            }
            outcomes
        });
    }
    let all = tokio::time::timeout(PATIENCE, tasks.join_all()).await;
    all.expect("every request ends in time").into_iter().flatten().collect()
}

async fn fetch(client: &Client, tier: &str, layer: u32, expert: u32) -> Result<(), Error> {
    let tier = tier.parse().expect("an id");
    let request = FetchExperts {
        model: "model".to_owned(),
        blocks: vec![(ExpertKey { tier, group: 0, expert }, layer)],
        ..FetchExperts::default()
    };
    let mut blocks = client.fetch_experts(request).await?;
    let mut count = 0;
    while let Some(block) = blocks.next().await {
        check(&block?, layer, expert);
        count += 1;
    }
    assert_eq!(count, 1);
    Ok(())
}

fn check(block: &FetchedBlock, layer: u32, expert: u32) {
    assert_eq!(block.tensors.len(), 3);
    for part in ["gate", "up", "down"] {
        let name = name(layer, expert, part);
        let mut tensors = block.tensors.iter().filter(|tensor| *tensor.name == *name);
        let tensor = tensors.next().unwrap_or_else(|| unreachable!("{name} is missing"));
        assert!(tensor.bytes == shards::content(&name, 2 * INNER * HIDDEN), "{name} differs");
    }
}
