//! Many short schedules, each drawn from a seed: a few workers, a few steps each, over a
//! memory that leases may take half of. Whoever is patient gets what is asked for, or is
//! told at once that it is too much; nobody waits for ever, and nothing is left behind.

use std::fs::File;
use std::ops::AddAssign;
use std::os::unix::fs::FileExt as _;

use super::*;

/// Schedules that are played. `TPAD_LEASE_SCHEDULES` asks for more.
const SCHEDULES: u64 = 300;

const LAYERS: u32 = 12;

/// Slots of the memory, and of what leases may hold, those of one worker or of all. As many
/// again may be set aside for batches that wait, and one is left to read into.
const SLOTS: [u64; 2] = [9, 4];

/// A hundred times what any schedule takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a worker does next.
#[derive(Clone, Debug)]
enum Step {
    /// Waits as long as it takes.
    Acquire(Vec<BlockKey>),
    /// Takes what is there after so long.
    Hurry(Vec<BlockKey>, Duration),
    /// Reads a block into memory and lets go of it.
    Fill(BlockKey),
    /// Gives back the older half of what it holds.
    Release,
    /// Has memory forget a block, whoever holds it.
    Evict(BlockKey),
    /// Ends with all that it holds; another worker takes its place.
    Die,
    /// The same, while it waits for an answer.
    DieAsking(Vec<BlockKey>, Duration),
}

/// A block as a worker has it: where it lies, and nothing that keeps it there but the
/// lease.
struct InPlace {
    lease: u64,
    key: BlockKey,
    slab: File,
    offset: u64,
}

/// What came of steps: a schedule in which nothing ever goes wrong shows nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    leased: usize,
    full: usize,
    late: usize,
    died_asking: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_short_schedule_has_anybody_wait_for_ever_or_leaves_a_lease() {
    let schedules = std::env::var("TPAD_LEASE_SCHEDULES").ok().and_then(|text| text.parse().ok());
    let schedules = schedules.unwrap_or(SCHEDULES);
    let [memory, leases] = SLOTS;
    // Blocks that stay in memory, one that does not, and some that push each other out.
    let budgets = [None, Some(SLOT / 2), Some(3 * SLOT)];
    let mut scenes = Vec::new();
    for budget in budgets {
        scenes.push(Arc::new(scene(LAYERS, memory * SLOT, budget, bounds(leases, leases)).await));
    }
    let mut tally = Tally::default();
    for (seed, scene) in (0..schedules).zip(scenes.iter().cycle()) {
        let played = tokio::time::timeout(PATIENCE, play(scene, seed)).await;
        tally += played.unwrap_or_else(|_| panic!("schedule {seed} waits for ever"));
        assert_eq!(scene.held(), 0, "after schedule {seed}");
        let status = scene.engine.status().leases;
        assert!(status.workers.is_empty(), "after schedule {seed}: {status:?}");
    }
    println!("{tally:?} of {schedules} schedules");
    let Tally { leased, full, late, died_asking } = tally;
    let all_came = leased > 0 && full > 0 && late > 0 && died_asking > 0;
    assert!(all_came, "{tally:?} after {schedules} schedules");
    for scene in scenes {
        let worker = scene.worker();
        let acquired = worker.acquire(&scene.generation, &keys(0..4), soon()).await;
        assert_eq!(numbers(&acquired.expect("nothing is leased")).len(), 4);
        let set_aside = pages(leases * SLOT) as usize - worker.state.all.shares.available_permits();
        assert_eq!(set_aside, 0, "pages are set aside for nobody");
        scene.engine.shutdown().await;
    }
}

/// Plays one schedule from nothing in memory.
async fn play(scene: &Arc<Scene>, seed: u64) -> Tally {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for key in keys(0..LAYERS) {
        evict(scene, &key).await;
    }
    let mut workers = JoinSet::new();
    for _ in 0..random.random_range(3..=6) {
        let steps = (0..random.random_range(1..=4)).map(|_| Step::draw(&mut random)).collect();
        workers.spawn(work(Arc::clone(scene), steps));
    }
    let mut tally = Tally::default();
    while let Some(worked) = workers.join_next().await {
        tally += worked.unwrap_or_else(|error| panic!("schedule {seed}: {error}"));
    }
    tally
}

async fn evict(scene: &Scene, key: &BlockKey) {
    let id = scene.generation.record(key, soon()).await.expect("it exists").id;
    scene.engine.hierarchy().evict(&id, None).await;
}

/// One worker's life, and its successors'.
async fn work(scene: Arc<Scene>, steps: Vec<Step>) -> Tally {
    let (mut worker, mut held) = (scene.worker(), Vec::<InPlace>::new());
    let mut tally = Tally::default();
    for step in steps {
        match step {
            Step::Acquire(keys) => {
                let acquired = worker.acquire(&scene.generation, &keys, soon()).await;
                tally += take(acquired, &mut held, |error| panic!("patient: {error}"));
            }
            Step::Hurry(keys, wait) => {
                let deadline = Instant::now() + wait;
                let acquired = worker.acquire(&scene.generation, &keys, deadline).await;
                tally += take(acquired, &mut held, |error| {
                    let hurried = [ErrorKind::DeadlineExceeded, ErrorKind::ResourceExhausted];
                    assert!(hurried.contains(&error.kind()), "{error}");
                });
            }
            Step::Fill(key) => {
                let read = scene.generation.read(key, ReadOptions::demand(soon())).await;
                drop(read.expect("half of the memory is nobody's"));
            }
            Step::Release => {
                let older: Vec<u64> =
                    held.drain(..held.len() / 2).map(|block| block.lease).collect();
                worker.release(&older);
            }
            Step::Evict(key) => evict(&scene, &key).await,
            Step::Die => {
                held.clear();
                worker = scene.worker();
            }
            Step::DieAsking(keys, after) => {
                let call = worker.acquire(&scene.generation, &keys, soon());
                tally.died_asking += usize::from(tokio::time::timeout(after, call).await.is_err());
                held.clear();
                worker = scene.worker();
            }
        }
        held.iter().for_each(|block| block.assert_right(&scene));
        scene.held();
        tokio::task::yield_now().await;
    }
    tally
}

/// Keeps what was leased.
fn take(
    acquired: Result<Acquired, EngineError>,
    held: &mut Vec<InPlace>,
    failed: impl Fn(&EngineError),
) -> Tally {
    let mut tally = Tally::default();
    let acquired = acquired.unwrap_or_else(|error| {
        assert_eq!(error.reason(), "LEASES_FULL", "{error}");
        tally.full += 1;
        Vec::new()
    });
    for outcome in acquired {
        match outcome {
            Ok(leased) => {
                tally.leased += 1;
                held.push(InPlace::of(leased));
            }
            Err(error) => {
                failed(&error);
                tally.late += 1;
            }
        }
    }
    tally
}

impl InPlace {
    fn of(leased: Leased) -> Self {
        let Leased { lease, place, block, ordinal: _ } = leased;
        let slab = block.served.bytes.shared_slab().descriptor().expect("a descriptor");
        Self { lease, key: block.key, slab: slab.into(), offset: place.offset }
    }

    fn assert_right(&self, scene: &Scene) {
        let image = &scene.checkpoint.blocks[&self.key];
        let mut bytes = vec![0; image.len()];
        self.slab.read_exact_at(&mut bytes, self.offset).expect("a slab is never shortened");
        assert!(bytes == **image, "{} has changed under its lease", self.key);
    }
}

impl Step {
    fn draw(random: &mut ChaCha8Rng) -> Self {
        let one = |random: &mut ChaCha8Rng| key(random.random_range(0..LAYERS));
        // One more than may be leased, now and then.
        let some = |random: &mut ChaCha8Rng| {
            (0..random.random_range(2..=5)).map(|_| one(random)).collect()
        };
        // Reading a block takes some hundreds of microseconds.
        let soon = |random: &mut ChaCha8Rng| Duration::from_micros(random.random_range(0..1500));
        match random.random_range(0..12) {
            0..6 => Self::Acquire(some(random)),
            6 => Self::Hurry(some(random), soon(random)),
            7 => Self::Fill(one(random)),
            8 => Self::Release,
            9 => Self::Evict(one(random)),
            10 => Self::Die,
            _ => Self::DieAsking(some(random), soon(random)),
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { leased, full, late, died_asking } = other;
        self.leased += leased;
        self.full += full;
        self.late += late;
        self.died_asking += died_asking;
    }
}
