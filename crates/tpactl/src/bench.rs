//! `tpactl bench`: what a daemon gives, measured from where its clients are.

mod drive;
mod keys;
mod meter;
mod plot;
mod report;
mod threads;

use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use tokio_util::sync::CancellationToken;
use tpad_client::{Client, ClientOptions, EvictLevel, GetMask, Receiver, Scope, SocketPaths};
use tpad_manifest::TierSet;

use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::remote::{Remote, seconds};
use drive::{Load, Work};
use keys::{Keys, Pattern};
use meter::Meter;
use report::Report;
use threads::{Homed, Threads};

/// Measure a daemon: throughput, latency, processor time and hit ratios
///
/// Run it where the workers run: what it gives is what they get. Ctrl-C ends a run early and
/// prints what was measured until then.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  tpactl bench fetch --model mixtral --concurrency 16 --duration 10
  tpactl bench fetch --model mixtral --keys zipf --rate 200 --plot latency.svg
  tpactl bench fetch --model qwen3 --keys qwen3.route.csv
  tpactl bench mask --model mixtral --concurrency 4
  tpactl bench cold --model mixtral --tier tier_10b --level dram")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Fetch(Fetch),
    Mask(Mask),
    Cold(Cold),
}

/// Fetch experts again and again
///
/// Without --rate each of --concurrency workers asks again when it has its answer (closed loop);
/// latency is then the time that an answer takes. With --rate requests are due at fixed times,
/// whether the daemon keeps up or not (open loop), and the latency of a request that was due while
/// all workers waited counts from then: a daemon that stalls is not spared what it delayed.
#[derive(Debug, clap::Args)]
struct Fetch {
    #[command(flatten)]
    load: LoadArgs,

    /// Experts of this tier alone; may be repeated [default: every tier that is served]
    #[arg(long, value_name = "T")]
    tier: Vec<String>,

    /// Which experts: `uniform`, `zipf` (exponent 0.99), `zipf:S`, or a routing trace
    /// (CSV: turn,phase,step,layer,slot,expert,...), of which each step and layer is one request
    #[arg(long, value_name = "PATTERN", default_value = "uniform", value_parser = Pattern::read)]
    keys: Pattern,

    /// Experts in one request; a trace says so itself
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    per_request: u32,

    #[command(flatten)]
    receive: Receive,
}

/// How blocks are received.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Receive {
    /// `bulk`: from the socket straight to where they are to be; `ordinary`: over the connection
    /// that all calls share
    #[arg(long, value_name = "RECEIVER", default_value = "bulk")]
    receiver: ReceiverName,

    /// Receive into one buffer for each worker, as who has memory of its own does
    #[arg(long)]
    into: bool,

    /// Do not check the bytes against their digests; the daemon always does
    #[arg(long)]
    no_verify: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ReceiverName {
    Bulk,
    Ordinary,
}

/// Ask for routing masks again and again
#[derive(Debug, clap::Args)]
struct Mask {
    #[command(flatten)]
    load: LoadArgs,
}

/// Read a tier that was made to be forgotten, block by block, once a round
///
/// Evicts the tier before each round, so it disturbs whoever uses the daemon. Measures the disk
/// with --level dram, and the object store without.
#[derive(Debug, clap::Args)]
struct Cold {
    /// The model
    #[arg(long, value_name = "M")]
    model: String,

    /// The tier
    #[arg(long, value_name = "T")]
    tier: String,

    /// Forget this level alone: `dram` leaves what is on disk [default: every level]
    #[arg(long, value_name = "LEVEL")]
    level: Option<ColdLevel>,

    /// Requests at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,

    /// How often
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    #[command(flatten)]
    receive: Receive,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ColdLevel {
    Dram,
}

/// How much is asked for, and for how long.
#[derive(Debug, clap::Args)]
struct LoadArgs {
    /// The model
    #[arg(long, value_name = "M")]
    model: String,

    /// Requests at a time; with --rate the most
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,

    /// Connections that share them [default: one for each request at a time up to 16; with
    /// --receiver ordinary one for four]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    connections: Option<u32>,

    /// Requests that are due in a second
    #[arg(long, value_name = "N", value_parser = rate)]
    rate: Option<f64>,

    /// How long to measure, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    duration: Duration,

    /// How long to run before, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    warmup: Duration,

    /// What the choice of experts begins with: the same seed, the same requests
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Draw latency by percentile to this file (SVG)
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let possible = rate.is_finite() && (0.001..=10_000_000.0).contains(&rate);
    if possible {
        Ok(rate)
    } else {
        Err("a rate between 0.001 and 10000000 is expected".to_owned())
    }
}

pub(crate) async fn run(
    args: Args,
    remote: &Remote,
    sockets: &SocketPaths,
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    match args.command {
        Command::Fetch(fetch) => {
            let first = remote.connect(sockets).await?;
            let keys = Keys::of(&first, &fetch.load.model, &fetch.tier, &fetch.keys).await?;
            let Fetch { per_request, receive, .. } = fetch;
            let work = Work::Fetch { keys, per_request, into: receive.into };
            let name = format!("fetch, {}", fetch.keys);
            drive_and_report(&name, work, &fetch.load, receive, (remote, sockets), output, stop)
                .await
        }
        Command::Mask(mask) => {
            let work = Work::Mask(GetMask::of(&mask.load.model, TierSet::Default));
            let receive = Receive::shared();
            drive_and_report("mask", work, &mask.load, receive, (remote, sockets), output, stop)
                .await
        }
        Command::Cold(cold) => cold.run(remote, sockets, output, stop).await,
    }
}

async fn drive_and_report(
    name: &str,
    work: Work,
    args: &LoadArgs,
    receive: Receive,
    (remote, sockets): (&Remote, &SocketPaths),
    output: &Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let threads = Threads::start(args.concurrency)?;
    let (clients, connections) =
        receive.clients(&threads, args.concurrency, args.connections, (remote, sockets)).await?;
    let meter_client = remote.connect(sockets).await?;
    let load = Load {
        work,
        clients,
        concurrency: args.concurrency,
        rate: args.rate,
        warmup: args.warmup,
        duration: args.duration,
        seed: args.seed,
    };
    let measured = load.run(&args.model_meter(&meter_client), stop).await?;
    let report = Report::of(name, args, connections, measured)?;
    if let Some(path) = &args.plot {
        let picture = plot::latency(&report);
        std::fs::write(path, picture)
            .map_err(|error| Failure::local(format!("{}: {error}", path.display())))?;
    }
    if output.is_json() { output.json(&report) } else { output.text(report.text(output)) }
}

impl Receive {
    /// For calls that receive no blocks.
    fn shared() -> Self {
        Self { receiver: ReceiverName::Ordinary, into: false, no_verify: false }
    }

    /// Clients that use as many connections together, for so many requests at a time.
    async fn clients(
        self,
        threads: &Threads,
        concurrency: u32,
        connections: Option<u32>,
        (remote, sockets): (&Remote, &SocketPaths),
    ) -> Result<(Vec<Homed>, u32), Failure> {
        let (receiver, usual) = match self.receiver {
            ReceiverName::Bulk => (Receiver::Bulk, concurrency.min(16)),
            ReceiverName::Ordinary => (Receiver::Ordinary, concurrency.div_ceil(4)),
        };
        let connections = connections.unwrap_or(usual).clamp(1, concurrency.max(1));
        let change = |options: &mut ClientOptions| {
            options.verify = !self.no_verify;
            options.receiver = receiver;
            // What it has in flight beyond that goes over its ordinary one.
            options.bulk_connections = 1;
        };
        let mut all = Vec::new();
        for n in 0..connections {
            let connect = remote.connect_with(sockets, change);
            // u32 fits wherever this runs.
            all.push(threads.client(usize::try_from(n).unwrap_or(0), connect).await?);
        }
        Ok((all, connections))
    }
}

impl LoadArgs {
    fn model_meter<'c>(&'c self, client: &'c Client) -> Meter<'c> {
        Meter { client, model: &self.model }
    }
}

impl Cold {
    async fn run(
        self,
        remote: &Remote,
        sockets: &SocketPaths,
        output: &Output,
        stop: &CancellationToken,
    ) -> Result<(), Failure> {
        let threads = Threads::start(self.concurrency)?;
        let from = (remote, sockets);
        let (clients, _) = self.receive.clients(&threads, self.concurrency, None, from).await?;
        let meter_client = remote.connect(sockets).await?;
        let meter = Meter { client: &meter_client, model: &self.model };
        let tiers = std::slice::from_ref(&self.tier);
        let keys = Keys::of(&meter_client, &self.model, tiers, &Pattern::Uniform).await?;
        let scope = Scope { tiers: vec![self.tier.clone()], ..Scope::default() };
        let level = self.level.map(|ColdLevel::Dram| EvictLevel::Dram);
        let mut rounds = Vec::new();
        for round in 1..=self.rounds {
            if stop.is_cancelled() {
                break;
            }
            meter_client.admin().evict(&self.model, scope.clone(), level).await?;
            let measured =
                drive::once(&keys, &clients, self.concurrency, self.receive.into, &meter, stop)
                    .await?;
            rounds.push(report::Round::of(round, measured));
        }
        if rounds.is_empty() {
            return Err(Failure::new(
                Exit::Interrupted,
                "interrupted before the first round ended",
            ));
        }
        let report = report::ColdReport::of(self.model, self.tier, self.concurrency, rounds);
        if output.is_json() { output.json(&report) } else { output.text(report.text(output)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_positive_numbers() {
        assert_eq!(rate("2.5"), Ok(2.5));
        for text in ["0", "-1", "nan", "inf", "x", "1e9"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
