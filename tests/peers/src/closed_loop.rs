//! The load: so many requests at a time, each worker asking again when it has its
//! answer. The clients in Python (`python/load.py`) follow the same rule.
//!
//! Workers warm up, each finishes what it began, and they wait for one another.
//! Then all clocks are read and the measured time begins, so that it holds whole
//! requests alone. It ends with the last answer to a request that was sent before
//! time was up.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::cpu;

/// A worker's connection.
pub trait Fetch {
    /// Fetches value `key` to its last byte; how many bytes it was.
    ///
    /// # Errors
    /// When it does not come, or another length comes.
    fn fetch(&mut self, key: usize) -> Result<u64>;
}

/// How much is asked for.
#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// Requests at a time
    #[arg(long, default_value_t = 1)]
    pub concurrency: usize,
    /// How many values there are
    #[arg(long, default_value_t = 1)]
    pub keys: usize,
    /// Seconds before the measured ones
    #[arg(long, default_value_t = 0.2)]
    pub warmup: f64,
    /// Seconds
    #[arg(long, default_value_t = 1.0)]
    pub seconds: f64,
    /// Every value once, without a warm-up, in place of a time
    #[arg(long)]
    pub once: bool,
    /// Processes whose time is the server's, with all that they started
    #[arg(long = "server", value_name = "PID")]
    pub servers: Vec<u32>,
}

/// What a run came to; what clients print.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Requests that were answered.
    pub requests: u64,
    /// Bytes of values.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Processor seconds of this process.
    pub client_cpu_seconds: f64,
    /// Processor seconds of the servers.
    pub server_cpu_seconds: f64,
    /// Milliseconds at the median.
    pub p50_ms: f64,
    /// Milliseconds at the 99th percentile.
    pub p99_ms: f64,
}

/// What workers share.
struct Shared<'a> {
    load: &'a Load,
    next: AtomicUsize,
    warmed: Barrier,
    begun: Barrier,
}

#[derive(Default)]
struct Tally {
    bytes: u64,
    latencies: Vec<Duration>,
}

/// Runs the load; `connect` is called once by each worker.
///
/// # Errors
/// The first of a worker's: a peer that fails a request has no figure.
pub fn run<F, C>(load: &Load, connect: C) -> Result<Outcome>
where
    F: Fetch,
    C: Fn() -> Result<F> + Sync,
{
    if load.concurrency == 0 || load.keys == 0 {
        bail!("at least one request at a time, for at least one value");
    }
    let parties = load.concurrency + 1;
    let shared = Shared {
        load,
        next: AtomicUsize::new(0),
        warmed: Barrier::new(parties),
        begun: Barrier::new(parties),
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..load.concurrency)
            .map(|n| {
                scope.spawn({
                    let (shared, connect) = (&shared, &connect);
                    move || shared.work(n, connect)
                })
            })
            .collect();
        shared.warmed.wait();
        let before = Look::now(load);
        let began = Instant::now();
        shared.begun.wait();
        let tallies: Vec<Result<Tally>> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
            .collect();
        let seconds = began.elapsed().as_secs_f64();
        let after = Look::now(load)?;
        let before = before?;
        let mut all = Tally::default();
        for tally in tallies {
            let tally = tally?;
            all.bytes += tally.bytes;
            all.latencies.extend(tally.latencies);
        }
        all.latencies.sort_unstable();
        let at = |share: f64| percentile_ms(&all.latencies, share);
        Ok(Outcome {
            requests: all.latencies.len() as u64,
            bytes: all.bytes,
            seconds,
            client_cpu_seconds: after.client - before.client,
            server_cpu_seconds: after.server - before.server,
            p50_ms: at(0.5),
            p99_ms: at(0.99),
        })
    })
}

struct Look {
    client: f64,
    server: f64,
}

impl Look {
    fn now(load: &Load) -> Result<Self> {
        Ok(Self { client: cpu::own_seconds()?, server: cpu::trees_seconds(&load.servers)? })
    }
}

impl Shared<'_> {
    fn work<F: Fetch>(&self, n: usize, connect: &impl Fn() -> Result<F>) -> Result<Tally> {
        let mut rng = ChaCha8Rng::seed_from_u64(n as u64);
        let ready = self.warm_up(&mut rng, connect);
        // Both are passed whatever became of it, or the others would wait for ever.
        self.warmed.wait();
        self.begun.wait();
        let mut peer = ready?;
        let until = Instant::now() + Duration::from_secs_f64(self.load.seconds);
        let mut tally = Tally::default();
        while let Some(key) = self.key(&mut rng, until) {
            let asked = Instant::now();
            tally.bytes += peer.fetch(key).with_context(|| format!("value {key}"))?;
            tally.latencies.push(asked.elapsed());
        }
        Ok(tally)
    }

    fn warm_up<F: Fetch>(
        &self,
        rng: &mut ChaCha8Rng,
        connect: &impl Fn() -> Result<F>,
    ) -> Result<F> {
        let mut peer = connect()?;
        if self.load.once {
            return Ok(peer);
        }
        let until = Instant::now() + Duration::from_secs_f64(self.load.warmup);
        loop {
            peer.fetch(rng.random_range(0..self.load.keys))?;
            if Instant::now() >= until {
                return Ok(peer);
            }
        }
    }

    /// The next value to ask for.
    fn key(&self, rng: &mut ChaCha8Rng, until: Instant) -> Option<usize> {
        if self.load.once {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            return (n < self.load.keys).then_some(n);
        }
        (Instant::now() < until).then(|| rng.random_range(0..self.load.keys))
    }
}

fn percentile_ms(sorted: &[Duration], share: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a list of latencies"
    )]
    let index = (sorted.len() as f64 * share) as usize;
    let found = sorted.get(index.min(sorted.len().saturating_sub(1)));
    found.map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    struct Noted<'a>(&'a Mutex<Vec<usize>>);

    impl Fetch for Noted<'_> {
        fn fetch(&mut self, key: usize) -> Result<u64> {
            self.0.lock().expect("no worker panics").push(key);
            if key == 99 { bail!("not this one") } else { Ok(10) }
        }
    }

    fn load(keys: usize) -> Load {
        Load { concurrency: 3, keys, warmup: 0.0, seconds: 1.0, once: true, servers: Vec::new() }
    }

    #[test]
    fn once_fetches_every_value_exactly_once() {
        let asked = Mutex::new(Vec::new());
        let outcome = run(&load(20), || Ok(Noted(&asked))).expect("all are answered");
        let mut asked = asked.into_inner().expect("no worker panics");
        asked.sort_unstable();
        assert_eq!(asked, (0..20).collect::<Vec<_>>());
        assert_eq!((outcome.requests, outcome.bytes), (20, 200));
    }

    #[test]
    fn one_failed_request_or_connection_leaves_no_figure() {
        let asked = Mutex::new(Vec::new());
        assert!(run(&load(100), || Ok(Noted(&asked))).is_err());
        assert!(run::<Noted<'_>, _>(&load(1), || bail!("nobody answers")).is_err());
    }

    #[test]
    fn percentiles_are_of_the_sorted_list() {
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert!((percentile_ms(&sorted, 0.5) - 51.0).abs() < 1e-9);
        assert!((percentile_ms(&sorted, 0.99) - 100.0).abs() < 1e-9);
        assert!(percentile_ms(&[], 0.5).abs() < 1e-9);
    }
}
