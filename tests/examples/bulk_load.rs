//! What a running daemon costs by the gigabyte, with a client that costs next to nothing.
//!
//! Prints a JSON object: GB/s, and for each GB the daemon's processor seconds, page
//! faults and write system calls. The model is the one that `tpad_tests::bulk` makes.
//!
//! usage: bulk_load ADDRESS PID [--connections N] [--streams N] [--frame BYTES] [--seconds N]
//!        bulk_load section DIRECTORY     makes the model there and prints its section

#![expect(clippy::print_stdout, reason = "a measurement prints its result")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;
use tpad_tests::bulk;
use tpad_tests::counts::Counts;
use tpad_tests::reader::{FRAME_BYTES, Reader};

/// Until sockets' buffers have grown to what the load wants.
const WARM: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [first, second, options @ ..] = &arguments[..] else {
        unreachable!("ADDRESS and PID, or section and DIRECTORY, are missing")
    };
    if first == "section" {
        return println!("{}", bulk::section(Path::new(second)));
    }
    let (mut connections, mut streams, mut frame, mut seconds) = (1, 1, FRAME_BYTES, 3);
    for pair in options.chunks(2) {
        let [name, value] = pair else { unreachable!("{pair:?} is no option with a value") };
        let value: u32 = value.parse().expect("a number");
        match name.as_str() {
            "--connections" => connections = value,
            "--streams" => streams = value,
            "--frame" => frame = value,
            "--seconds" => seconds = value,
            other => unreachable!("no option is called {other}"),
        }
    }
    let address: SocketAddr = first.parse().expect("an address");
    let daemon: u32 = second.parse().expect("a process id");
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        let taken = Arc::new(AtomicU64::new(0));
        let mut readers = JoinSet::new();
        for _ in 0..connections {
            readers.spawn(read(address, streams, frame, Arc::clone(&taken)));
        }
        tokio::time::sleep(WARM).await;
        let (before, bytes, began) =
            (Counts::of(daemon), taken.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(Duration::from_secs(u64::from(seconds))).await;
        let bytes = taken.load(Ordering::Relaxed) - bytes;
        let (took, after) = (began.elapsed().as_secs_f64(), Counts::of(daemon));
        let gb = bytes as f64 / 1e9;
        println!(
            "{}",
            json!({
                "gb_per_second": gb / took,
                "cpu_seconds_per_gb": (after.cpu_seconds - before.cpu_seconds) / gb,
                "minor_faults_per_gb": (after.minor_faults - before.minor_faults) as f64 / gb,
                "writes_per_gb": (after.writes - before.writes) as f64 / gb,
            })
        );
        readers.shutdown().await;
    });
}

/// One connection with so many blocks asked for at any time.
async fn read(address: SocketAddr, streams: u32, frame: u32, taken: Arc<AtomicU64>) {
    let mut reader = Reader::connect(address, None, frame).await.expect("it is accepted");
    for n in 0.. {
        reader.ask(bulk::FETCH_EXPERTS, &bulk::one_block(n)).await.expect("asked");
        if n + 1 >= u64::from(streams) {
            let ended = reader.take(&taken).await.expect("the connection stays");
            assert!(!ended.reset);
        }
    }
}
