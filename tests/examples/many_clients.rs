//! Many clients of which some never read: what the others get, with and without them.
//!
//! Starts the `tpad` beside it and, round by round, lets the good clients fetch
//! blocks for some seconds alone and for as long beside bad ones, which ask for
//! everything on several streams and take nothing. Each client is a peer with an
//! address of its own. Prints a JSON document: rounds in GB/s, their ratio, and
//! what the daemon held.
//!
//! usage: many_clients [--clients N] [--bad N] [--rounds N] [--seconds N] [--cpus DAEMON:CLIENTS]

#![expect(clippy::print_stdout, reason = "a measurement prints its result")]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;
use tpad_tests::bulk;
use tpad_tests::process::Process;
use tpad_tests::reader::{FRAME_BYTES, Reader};

/// Streams of one bad client.
const STREAMS: u32 = 8;

/// The model is some 250 MiB, and a quarter of this is look-ahead.
const CAPACITY: &str = "512MiB";

/// Descriptors for the clients and the daemon's side of them, and loops of a round
/// that must be warm before it counts.
const WARM: Duration = Duration::from_millis(1500);

struct Options {
    clients: u32,
    bad: u32,
    rounds: u32,
    seconds: u64,
    cpus: Option<(String, String)>,
}

/// What one phase gave.
struct Phase {
    gb_per_second: f64,
    /// Good clients that got something.
    served: usize,
    most_in_flight: f64,
    failed: u64,
}

fn options() -> Options {
    let mut options = Options { clients: 500, bad: 50, rounds: 5, seconds: 4, cpus: None };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { unreachable!("{pair:?} is no option with a value") };
        let number = || value.parse().expect("a number");
        match name.as_str() {
            "--clients" => options.clients = number(),
            "--bad" => options.bad = number(),
            "--rounds" => options.rounds = number(),
            "--seconds" => options.seconds = u64::from(number()),
            "--cpus" => {
                let (daemon, clients) = value.split_once(':').expect("DAEMON:CLIENTS");
                options.cpus = Some((daemon.to_owned(), clients.to_owned()));
            }
            other => unreachable!("no option is called {other}"),
        }
    }
    options
}

fn main() {
    tpad::descriptors::raise_limit();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(measure(&options()));
}

async fn measure(options: &Options) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = format!(
        "{}[levels.dram]\ncapacity = \"{CAPACITY}\"\n[limits]\nconnections = 4096\n",
        bulk::section(directory.path())
    );
    let daemon = Process::serve(directory.path(), &config).await;
    if let Some((of_daemon, of_clients)) = &options.cpus {
        pin(daemon.id(), of_daemon);
        pin(std::process::id(), of_clients);
    }
    // All blocks come into memory.
    let mut first = Reader::connect(daemon.grpc(), None, FRAME_BYTES).await.expect("it answers");
    first.ask(bulk::FETCH_EXPERTS, &bulk::all_blocks()).await.expect("asked");
    let warm = AtomicU64::new(0);
    first.take(&warm).await.expect("served");
    drop(first);
    let idle = resident_bytes(daemon.id());

    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        without.push(phase(&daemon, options, 0).await);
        with.push(phase(&daemon, options, options.bad).await);
    }
    let gb = |phases: &[Phase]| phases.iter().map(|phase| phase.gb_per_second).collect::<Vec<_>>();
    let ratios: Vec<f64> = with
        .iter()
        .zip(&without)
        .map(|(with, without)| with.gb_per_second / without.gb_per_second)
        .collect();
    let most = |phases: &[Phase]| phases.iter().map(|p| p.most_in_flight).fold(0.0, f64::max);
    println!(
        "{:#}",
        json!({
            "clients": options.clients,
            "bad": options.bad,
            "streams_of_a_bad_one": STREAMS,
            "seconds": options.seconds,
            "good_gb_per_second": { "without": gb(&without), "with": gb(&with) },
            "ratios": ratios,
            "median_ratio": median(&ratios),
            "least_good_clients_served": with.iter().map(|phase| phase.served).min(),
            "good_requests_failed": with.iter().chain(&without).map(|phase| phase.failed).sum::<u64>(),
            "most_in_flight_bytes": { "without": most(&without), "with": most(&with) },
            "resident_bytes_before": idle,
            "peak_bytes": daemon.peak_bytes(),
        })
    );
    let (status, log) = daemon.terminate();
    assert!(status.success(), "{status}\n{log}");
}

async fn phase(daemon: &Process, options: &Options, bad: u32) -> Phase {
    let (address, good) = (daemon.grpc(), options.clients - options.bad);
    let mut never_read = Vec::new();
    for client in 0..bad {
        let reader = Reader::connect(address, Some(own_address(1, client)), FRAME_BYTES).await;
        let mut reader = reader.expect("it is accepted");
        for _ in 0..STREAMS {
            reader.ask(bulk::FETCH_EXPERTS, &bulk::all_blocks()).await.expect("asked");
        }
        never_read.push(reader);
    }
    let taken: Vec<Arc<AtomicU64>> = (0..good).map(|_| Arc::default()).collect();
    let failed = Arc::new(AtomicU64::new(0));
    let mut clients = JoinSet::new();
    for (client, taken) in taken.iter().enumerate() {
        let client = u32::try_from(client).expect("some hundred");
        let (taken, failed) = (Arc::clone(taken), Arc::clone(&failed));
        clients.spawn(fetch(address, own_address(2, client), taken, failed));
    }
    let all = || taken.iter().map(|taken| taken.load(Ordering::Relaxed)).collect::<Vec<u64>>();
    tokio::time::sleep(WARM).await;
    let (before, began) = (all(), Instant::now());
    let mut most_in_flight = 0.0f64;
    let wanted = Duration::from_secs(options.seconds);
    while began.elapsed() < wanted {
        tokio::time::sleep(wanted / 8).await;
        most_in_flight = most_in_flight.max(daemon.metric("tpad_in_flight_bytes", &[]).await);
    }
    let (after, seconds) = (all(), began.elapsed().as_secs_f64());
    let gained: Vec<u64> =
        after.iter().zip(&before).map(|(after, before)| after - before).collect();
    clients.shutdown().await;
    drop(never_read);
    let failed = failed.load(Ordering::Relaxed);
    Phase {
        gb_per_second: gained.iter().sum::<u64>() as f64 / 1e9 / seconds,
        served: gained.iter().filter(|gained| **gained > 0).count(),
        most_in_flight,
        failed,
    }
}

/// One good client: a block after the other, for ever.
async fn fetch(to: SocketAddr, from: Ipv4Addr, taken: Arc<AtomicU64>, failed: Arc<AtomicU64>) {
    let mut reader = Reader::connect(to, Some(from), FRAME_BYTES).await.expect("it is accepted");
    for n in u64::from(from.to_bits()).. {
        let before = taken.load(Ordering::Relaxed);
        let asked = reader.ask(bulk::FETCH_EXPERTS, &bulk::one_block(n)).await;
        asked.expect("the connection stays");
        let ended = reader.take(&taken).await.expect("the connection stays");
        if ended.reset || taken.load(Ordering::Relaxed) - before < 15 << 20 {
            failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A loopback address of its own: to the daemon a peer of its own.
fn own_address(kind: u8, client: u32) -> Ipv4Addr {
    let [_, _, high, low] = client.to_be_bytes();
    Ipv4Addr::new(127, kind, high, low.max(1))
}

fn pin(process: u32, cpus: &str) {
    let pinned =
        Command::new("taskset").args(["-a", "-c", "-p", cpus, &process.to_string()]).output();
    assert!(pinned.is_ok_and(|output| output.status.success()), "taskset (util-linux) is needed");
}

fn resident_bytes(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
