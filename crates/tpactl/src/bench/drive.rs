//! Requests, one after the other or when they are due, and what became of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tpad_client::{Client, Error, FetchExperts, GetMask};

use super::keys::{Expert, Keys};
use super::meter::{Meter, Used};
use super::threads::Homed;
use crate::failure::Failure;

/// The longest latency that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(3600);

/// After a request that failed: a daemon that is away is not asked a million times.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// What is asked for.
pub(super) enum Work {
    /// Experts.
    Fetch { keys: Keys, per_request: u32, into: bool },
    /// A mask.
    Mask(GetMask),
}

/// One run.
pub(super) struct Load {
    pub(super) work: Work,
    pub(super) clients: Vec<Homed>,
    pub(super) concurrency: u32,
    /// Requests due in a second; `None`: each worker asks when it has its answer.
    pub(super) rate: Option<f64>,
    pub(super) warmup: Duration,
    pub(super) duration: Duration,
    pub(super) seed: u64,
}

/// What requests came to.
#[derive(Debug)]
pub(super) struct Tally {
    /// Requests that were answered.
    pub(super) requests: u64,
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    /// Nanoseconds.
    pub(super) latency: Histogram<u64>,
    /// Requests that failed, by kind, with the first of each.
    pub(super) errors: BTreeMap<&'static str, (u64, Error)>,
}

/// A run's result.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) tally: Tally,
    pub(super) seconds: f64,
    /// Requests that were due and had not begun when time was up.
    pub(super) overdue: u64,
    pub(super) used: Used,
}

/// What workers share, for as long as a phase lasts.
struct Phase {
    work: Arc<Work>,
    rate: Option<f64>,
    next: AtomicU64,
    start: Instant,
    until: Instant,
    stop: CancellationToken,
}

impl Load {
    /// Runs for the warm-up, waits for what was asked until then, and runs again: what is
    /// measured begins and ends within the measured time.
    pub(super) async fn run(
        self,
        meter: &Meter<'_>,
        stop: &CancellationToken,
    ) -> Result<Measured, Failure> {
        let mut workers = Vec::new();
        for (n, homed) in (0..self.concurrency).zip(self.clients.iter().cycle()) {
            let seed = self.seed.wrapping_mul(1 << 32).wrapping_add(u64::from(n));
            workers.push(Worker {
                homed: homed.clone(),
                rng: ChaCha8Rng::seed_from_u64(seed),
                memory: self.work.memory(),
                tally: Tally::new()?,
            });
        }
        let work = Arc::new(self.work);
        let phase = |duration| {
            let start = Instant::now();
            Arc::new(Phase {
                work: Arc::clone(&work),
                rate: self.rate,
                next: AtomicU64::new(0),
                start,
                until: start + duration,
                stop: stop.clone(),
            })
        };
        let mut workers = Worker::all(workers, &phase(self.warmup)).await?;
        for worker in &mut workers {
            worker.tally = Tally::new()?;
        }
        let before = meter.look().await?;
        let measured = phase(self.duration);
        let workers = Worker::all(workers, &measured).await?;
        let seconds = measured.start.elapsed().as_secs_f64();
        let used = meter.look().await?.since(&before);
        let tally = Tally::sum(workers.into_iter().map(|worker| worker.tally))?;
        Ok(Measured { overdue: measured.overdue(), tally, seconds, used })
    }
}

/// Fetches every expert once.
pub(super) async fn once(
    keys: &Keys,
    clients: &[Homed],
    concurrency: u32,
    into: bool,
    meter: &Meter<'_>,
    stop: &CancellationToken,
) -> Result<Measured, Failure> {
    let before = meter.look().await?;
    let next = Arc::new(AtomicU64::new(0));
    let experts: Arc<[Expert]> = keys.experts.clone().into();
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for (_, homed) in (0..concurrency).zip(clients.iter().cycle()) {
        let (client, model, stop) = (homed.client.clone(), keys.model.clone(), stop.clone());
        let (next, experts, mut tally) = (Arc::clone(&next), Arc::clone(&experts), Tally::new()?);
        let mut memory = into.then(Vec::new);
        let work = async move {
            while !stop.is_cancelled() {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let expert = usize::try_from(n).ok().and_then(|n| experts.get(n));
                let Some(expert) = expert else { break };
                let asked = Instant::now();
                let blocks = vec![expert.clone()];
                let answer = fetch(&client, &model, blocks, memory.as_mut()).await;
                tally.add(asked, answer);
            }
            tally
        };
        workers.spawn_on(work, &homed.home);
    }
    let mut tallies = Vec::new();
    while let Some(tally) = workers.join_next().await {
        tallies.push(tally.map_err(ended)?);
    }
    let tally = Tally::sum(tallies)?;
    let seconds = began.elapsed().as_secs_f64();
    let used = meter.look().await?.since(&before);
    Ok(Measured { tally, seconds, overdue: 0, used })
}

fn ended(error: tokio::task::JoinError) -> Failure {
    Failure::local(format!("a worker ended: {error}"))
}

impl Work {
    /// A worker's memory, if it is to have some: it grows with the first request.
    fn memory(&self) -> Option<Vec<u8>> {
        matches!(self, Self::Fetch { into: true, .. }).then(Vec::new)
    }
}

struct Worker {
    homed: Homed,
    rng: ChaCha8Rng,
    /// What blocks are received into, if it is the worker's.
    memory: Option<Vec<u8>>,
    tally: Tally,
}

impl Worker {
    /// Runs all of them until their phase is over.
    async fn all(workers: Vec<Self>, phase: &Arc<Phase>) -> Result<Vec<Self>, Failure> {
        let mut running = JoinSet::new();
        for worker in workers {
            let home = worker.homed.home.clone();
            running.spawn_on(worker.run(Arc::clone(phase)), &home);
        }
        let mut workers = Vec::new();
        while let Some(worker) = running.join_next().await {
            workers.push(worker.map_err(ended)?);
        }
        Ok(workers)
    }

    async fn run(mut self, phase: Arc<Phase>) -> Self {
        while !phase.stop.is_cancelled() && Instant::now() < phase.until {
            let n = phase.next.fetch_add(1, Ordering::Relaxed);
            let due = phase.due(n);
            if due >= phase.until {
                break;
            }
            let mut since = due;
            if due > Instant::now() {
                tokio::select! {
                    () = sleep_until(due) => {}
                    () = phase.stop.cancelled() => break,
                }
                // The timer counts milliseconds: how late it is, is no latency of the
                // daemon's. What was due while all workers waited still counts from then.
                since = Instant::now();
            }
            if Instant::now() >= phase.until {
                phase.next.fetch_sub(1, Ordering::Relaxed);
                break;
            }
            let answer = self.ask(&phase.work, n).await;
            let failed = answer.is_err();
            self.tally.add(since, answer);
            if failed {
                tokio::time::sleep(AFTER_FAILURE).await;
            }
        }
        self
    }

    async fn ask(&mut self, work: &Work, n: u64) -> Result<(u64, u64), Error> {
        match work {
            Work::Fetch { keys, per_request, .. } => {
                let experts = keys.request(n, *per_request, &mut self.rng);
                fetch(&self.homed.client, &keys.model, experts, self.memory.as_mut()).await
            }
            Work::Mask(mask) => self.homed.client.routing_mask(mask.clone()).await.map(|_| (0, 0)),
        }
    }
}

/// Fetches experts to the last byte, into `memory` if there is some; how many blocks and
/// bytes they are.
async fn fetch(
    client: &Client,
    model: &str,
    blocks: Vec<Expert>,
    memory: Option<&mut Vec<u8>>,
) -> Result<(u64, u64), Error> {
    let count = blocks.len();
    let request = FetchExperts { model: model.to_owned(), blocks, ..FetchExperts::default() };
    let (mut blocks, mut bytes) = (0, 0);
    let Some(memory) = memory else {
        let mut stream = client.fetch_experts(request).await?;
        while let Some(block) = stream.next().await {
            blocks += 1;
            bytes += block?.image.len() as u64;
        }
        return Ok((blocks, bytes));
    };
    let placed = match client.fetch_into(request.clone(), memory).await {
        Err(Error::NoRoom { needed, .. }) => {
            // With what each image may lose to its boundary.
            let needed = usize::try_from(needed).unwrap_or(usize::MAX);
            memory.resize(needed.saturating_add(count * 256), 0);
            client.fetch_into(request, memory).await?
        }
        placed => placed?,
    };
    for block in placed.blocks {
        blocks += 1;
        bytes += block.image.len() as u64;
    }
    Ok((blocks, bytes))
}

impl Phase {
    /// When request `n` is due: now where nobody says.
    fn due(&self, n: u64) -> Instant {
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 requests")]
        let after = self.rate.map(|rate| Duration::from_secs_f64(n as f64 / rate));
        after.map_or_else(Instant::now, |after| self.start + after)
    }

    fn overdue(&self) -> u64 {
        let Some(rate) = self.rate.filter(|_| !self.stop.is_cancelled()) else { return 0 };
        let time = self.until.saturating_duration_since(self.start).as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count of requests"
        )]
        let due = (time * rate).ceil() as u64;
        due.saturating_sub(self.next.load(Ordering::Relaxed))
    }
}

impl Tally {
    fn new() -> Result<Self, Failure> {
        let most = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
        let latency = Histogram::new_with_bounds(1000, most, 3)
            .map_err(|error| Failure::local(format!("histogram: {error}")))?;
        Ok(Self { requests: 0, blocks: 0, bytes: 0, latency, errors: BTreeMap::new() })
    }

    /// Counts an answer to what was to be sent at `since`.
    fn add(&mut self, since: Instant, answer: Result<(u64, u64), Error>) {
        match answer {
            Ok((blocks, bytes)) => {
                self.requests += 1;
                self.blocks += blocks;
                self.bytes += bytes;
                let nanoseconds = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.latency.saturating_record(nanoseconds);
            }
            Err(error) => {
                self.errors.entry(error.kind().as_str()).or_insert_with(|| (0, error)).0 += 1;
            }
        }
    }

    fn sum(tallies: impl IntoIterator<Item = Self>) -> Result<Self, Failure> {
        let mut all = Self::new()?;
        for tally in tallies {
            all.requests += tally.requests;
            all.blocks += tally.blocks;
            all.bytes += tally.bytes;
            all.latency
                .add(&tally.latency)
                .map_err(|error| Failure::local(format!("histogram: {error}")))?;
            for (kind, (count, error)) in tally.errors {
                all.errors.entry(kind).or_insert_with(|| (0, error)).0 += count;
            }
        }
        Ok(all)
    }
}
