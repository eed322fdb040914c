//! What both sides cost in counts that do not depend on how fast the machine is.

use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::process::Command;
use tpad_tests::bulk;
use tpad_tests::counts::Counts;
use tpad_tests::process::Process;
use tpad_tests::reader::{FRAME_BYTES, Reader};
use tpad_tests::scene::play;
use tpad_tests::tools;

const GB: u64 = 1_000_000_000;

/// Measured: 0 to 2, in any build. A copy of what is sent, into memory that is given
/// back after each use, would be 244,000.
const FAULTS_PER_GB: u64 = 500;

/// Measured: 1,300 to 1,500, in any build: a frame of 1 MiB takes one write, and more
/// where the socket takes less at a time. Frames of 256 KiB take 4,300, of 16 KiB 61,000.
const WRITES_PER_GB: u64 = 4_000;

/// Measured of the client, in any build: 0 to 20, since it receives every block into the
/// same memory. Fresh memory for each would be 244,000.
const CLIENT_FAULTS_PER_GB: f64 = 1_000.0;

/// Measured of the client: 940 in a debug build, two for each frame. Woken by every segment a
/// release build took 6,500, and reads of 16 KiB would be 61,000.
const CLIENT_READS_PER_GB: f64 = 5_000.0;

#[test]
fn a_gigabyte_takes_few_writes_and_no_new_memory() {
    play(async |scene| {
        let config =
            format!("{}[levels.dram]\ncapacity = \"512MiB\"\n", bulk::section(scene.directory()));
        let daemon = Process::serve(scene.directory(), &config).await;
        let mut reader =
            Reader::connect(daemon.grpc(), None, FRAME_BYTES).await.expect("it is accepted");
        let taken = AtomicU64::new(0);
        // Blocks come into memory, and the allocator gets what it needs.
        fetch(&mut reader, &taken, 2).await;
        let (before, bytes) = (Counts::of(daemon.id()), taken.load(Ordering::Relaxed));
        fetch(&mut reader, &taken, 4).await;
        let (after, bytes) = (Counts::of(daemon.id()), taken.load(Ordering::Relaxed) - bytes);
        assert!(bytes > GB, "{bytes} bytes");
        let per_gb = |before: u64, after: u64| (after - before) * GB / bytes;
        let faults = per_gb(before.minor_faults, after.minor_faults);
        let writes = per_gb(before.writes, after.writes);
        assert!(faults <= FAULTS_PER_GB, "{faults} page faults per GB");
        assert!(writes <= WRITES_PER_GB, "{writes} writes per GB");
        // That they were counted at all.
        assert!(writes >= GB / u64::from(FRAME_BYTES), "{writes} writes per GB");
        println!("{faults} page faults and {writes} writes per GB");
        let (status, log) = daemon.terminate();
        assert!(status.success(), "{status}\n{log}");
    });
}

#[test]
fn a_gigabyte_takes_the_client_few_reads_and_no_new_memory() {
    play(async |scene| {
        let config =
            format!("{}[levels.dram]\ncapacity = \"512MiB\"\n", bulk::section(scene.directory()));
        let daemon = Process::serve(scene.directory(), &config).await;
        let mut bench = Command::new(tools::program("tpactl"));
        bench.arg("--addr").arg(format!("http://{}", daemon.grpc())).args(["bench", "fetch"]);
        bench.args(["--model", bulk::MODEL, "--into", "--no-verify", "--concurrency", "4"]);
        bench.args(["--duration", "120"]).stdout(Stdio::null()).kill_on_drop(true);
        let mut client = bench.spawn().expect("tpactl runs");
        let mut sent = async |from: f64| {
            loop {
                let ended = client.try_wait().expect("it can be asked");
                assert!(ended.is_none(), "the client ended: {ended:?}");
                let sent = daemon.metric("tpad_sent_bytes_total", &[]).await;
                if sent >= from {
                    break (sent, Counts::of(client.id().expect("it runs")));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // Until blocks are in memory, and every buffer was used.
        let (from, before) = sent(2e9).await;
        let (to, after) = sent(from + 2e9).await;
        client.kill().await.expect("it runs");
        #[expect(clippy::cast_precision_loss, reason = "counts of some seconds")]
        let per_gb = |before: u64, after: u64| (after - before) as f64 * 1e9 / (to - from);
        let faults = per_gb(before.minor_faults, after.minor_faults);
        let reads = per_gb(before.reads, after.reads);
        println!("{faults:.0} page faults and {reads:.0} reads per GB");
        assert!(faults <= CLIENT_FAULTS_PER_GB, "{faults:.0} page faults per GB");
        assert!(reads <= CLIENT_READS_PER_GB, "{reads:.0} reads per GB");
        // That they were counted at all: what a frame holds is read at least at once.
        assert!(reads >= 1e9 / f64::from(4 * FRAME_BYTES), "{reads:.0} reads per GB");
        let (status, log) = daemon.terminate();
        assert!(status.success(), "{status}\n{log}");
    });
}

/// Everything, so many times.
async fn fetch(reader: &mut Reader, taken: &AtomicU64, times: usize) {
    for _ in 0..times {
        reader.ask(bulk::FETCH_EXPERTS, &bulk::all_blocks()).await.expect("asked");
        let ended = reader.take(taken).await.expect("the connection stays");
        assert!(!ended.reset);
    }
}
