//! The level on disk in processes that are killed and on disks that fill up. The
//! program is its own child: `fill` writes until it is killed, `refuse` runs where
//! it may mount a disk, `forbid` where it may not use io_uring.
#![expect(clippy::print_stdout, reason = "it reports as the test harness does")]

#[path = "../store/model.rs"]
#[expect(dead_code, clippy::cast_possible_truncation, reason = "the store's tests use the rest")]
mod model;

mod forbid;
mod kill;
mod refuse;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tpad_store::{Hierarchy, Level, NvmeConfig, NvmeIo, NvmeLevel, StoreMetrics};

use crate::model::{MIB, Model, config};

const TESTS: [(&str, fn()); 3] = [
    ("where_io_uring_is_forbidden_threads_read_and_it_is_said", forbid::run),
    ("a_thousand_kills_during_fills_leave_no_wrong_byte", kill::run),
    ("a_disk_that_refuses_writes_fails_no_request_and_is_used_again", refuse::run),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &*arguments.iter().map(String::as_str).collect::<Vec<&str>>() {
        ["fill", path, seed] => kill::fill(Path::new(path), seed.parse().expect("a number")),
        ["forbid", path, expected] => forbid::child(Path::new(path), expected),
        ["refuse", path] => refuse::child(Path::new(path)),
        _ => tests(&arguments),
    }
}

fn tests(arguments: &[String]) {
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| {
        let fits =
            |filter: &&String| if exact { name == **filter } else { name.contains(&***filter) };
        filters.is_empty() || filters.iter().any(fits)
    };
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return;
    }
    let chosen: Vec<_> = TESTS.iter().filter(|(name, _)| wanted(name)).collect();
    println!("\nrunning {} tests", chosen.len());
    let started = Instant::now();
    for (name, test) in &chosen {
        // A panic ends the program with its message and a failure.
        test();
        println!("test {name} ... ok");
    }
    let (passed, filtered) = (chosen.len(), TESTS.len() - chosen.len());
    let took = started.elapsed().as_secs_f64();
    println!(
        "\ntest result: ok. {passed} passed; 0 failed; 0 ignored; 0 measured; {filtered} filtered \
         out; finished in {took:.2}s\n"
    );
}

fn runtime() -> tokio::runtime::Runtime {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime")
}

/// Blocks of 512 bytes to 50 KiB, some 2.5 MiB of them: more than host memory has.
fn model() -> Model {
    Model::new(11, "a", (1..=100).map(|n| n * 512))
}

/// A level over `path` and a hierarchy with next to no host memory over it.
fn open(
    path: &Path,
    capacity_bytes: u64,
    metrics: &StoreMetrics,
) -> (Arc<NvmeLevel>, Arc<Hierarchy>) {
    let nvme =
        NvmeConfig { path: path.to_owned(), capacity_bytes, free_floor_bytes: 0, io: NvmeIo::Auto };
    let level = NvmeLevel::open(nvme, metrics.clone()).expect("sound bounds");
    let hierarchy = hierarchy(&level, metrics);
    (level, hierarchy)
}

fn hierarchy(level: &Arc<NvmeLevel>, metrics: &StoreMetrics) -> Arc<Hierarchy> {
    let lower: Vec<Arc<dyn Level>> = vec![Arc::clone(level) as Arc<dyn Level>];
    Hierarchy::new(config(MIB), lower, metrics.clone()).expect("sound bounds")
}

/// This program, to be run again.
fn own() -> std::process::Command {
    std::process::Command::new(std::env::current_exe().expect("its own path"))
}
