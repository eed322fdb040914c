//! What the daemon costs in counts that do not depend on how fast the machine is.

use std::sync::atomic::{AtomicU64, Ordering};

use tpad_tests::bulk;
use tpad_tests::counts::Counts;
use tpad_tests::process::Process;
use tpad_tests::reader::{FRAME_BYTES, Reader};
use tpad_tests::scene::play;

const GB: u64 = 1_000_000_000;

/// Measured: 0 to 2, in any build. A copy of what is sent, into memory that is given
/// back after each use, would be 244,000.
const FAULTS_PER_GB: u64 = 500;

/// Measured: 1,300 to 1,500, in any build: a frame of 1 MiB takes one write, and more
/// where the socket takes less at a time. Frames of 256 KiB take 4,300, of 16 KiB 61,000.
const WRITES_PER_GB: u64 = 4_000;

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

/// Everything, so many times.
async fn fetch(reader: &mut Reader, taken: &AtomicU64, times: usize) {
    for _ in 0..times {
        reader.ask(bulk::FETCH_EXPERTS, &bulk::all_blocks()).await.expect("asked");
        let ended = reader.take(taken).await.expect("the connection stays");
        assert!(!ended.reset);
    }
}
