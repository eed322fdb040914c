//! `cargo xtask fuzz`: every target for a while, from the kept corpus.
//!
//! The fuzzer is libFuzzer, as under cargo-fuzz, which wants a nightly compiler
//! for its sanitizers. The targets read bytes in safe Rust: what is missed
//! without sanitizers is little, and coverage works with the pinned compiler.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::{cargo, output, root, run, say};

/// The targets, each with the kept malformed files that it can start from.
const TARGETS: &[(&str, Option<&str>)] = &[
    ("revision", Some("revision")),
    ("index_header", Some("header")),
    ("index_segment", Some("segment")),
    ("shard_header", Some("shard")),
    ("plan", None),
    ("reply", None),
    ("worker_frames", None),
    ("daemon_frames", None),
];

/// The compiler's part of libFuzzer: counters at every edge, and what is
/// compared with what. These are the flags that cargo-fuzz sets.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];

/// How long each target runs, unless told.
const DEFAULT: Duration = Duration::from_secs(60);

/// The whole process: the fuzzer's own tables and corpus are in it.
const MOST_MEMORY_MIB: u32 = 1024;

/// One input. The targets need microseconds; this is wall time, and a machine
/// with better things to do may stand still for a while.
const MOST_SECONDS_PER_INPUT: u32 = 20;

/// `[--seconds N] [TARGET...]`.
pub(crate) fn fuzz(arguments: &[String]) -> Result<()> {
    let mut time = DEFAULT;
    let mut chosen = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let seconds = arguments.next().context("--seconds needs a number")?;
            time = Duration::from_secs(seconds.parse().context("--seconds needs a number")?);
            continue;
        }
        let target = TARGETS.iter().find(|(name, _)| name == argument);
        chosen.push(target.with_context(|| {
            let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
            format!("no target is called {argument}; there are {}", names.join(", "))
        })?);
    }
    ensure!(!time.is_zero(), "--seconds 0 would fuzz for ever");
    if chosen.is_empty() {
        chosen.extend(TARGETS);
    }
    let programs = build()?;
    let waiting = Mutex::new(chosen.into_iter());
    let failed = Mutex::new(Vec::new());
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().ok().and_then(|mut waiting| waiting.next());
                    let Some((target, hostile)) = next else { break };
                    let result = hunt(&programs, target, *hostile, time);
                    match (result, failed.lock()) {
                        (Err(error), Ok(mut failed)) => failed.push(format!("{error:#}")),
                        (Ok(said), _) => say(&said),
                        (Err(error), Err(_)) => say(&format!("{error:#}")),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !failed.is_empty() {
        bail!("{}", failed.join("\n"));
    }
    Ok(())
}

/// Builds all targets; their directory.
fn build() -> Result<PathBuf> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say for which machine it compiles")?;
    // With a target named, what runs at compile time is built without the
    // flags; in its own directory, nothing else is built again because of them.
    let directory = root().join("target/fuzz");
    let mut command = cargo();
    command.args(["build", "-p", "tpad-fuzz", "--bins", "--features", "libfuzzer"]);
    command.args(["--profile", "fuzz", "--target", host, "--target-dir"]).arg(&directory);
    run(command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")))?;
    Ok(directory.join(host).join("fuzz"))
}

/// Runs one target; what it did, or what it found.
fn hunt(programs: &Path, target: &str, hostile: Option<&str>, time: Duration) -> Result<String> {
    // What it reaches anew is left beside the kept corpus, to be looked at. The
    // next run starts without it: a minute must not go by with reading it.
    let grown = root().join("target/fuzz/corpus").join(target);
    let found = root().join("target/fuzz/found").join(target);
    if grown.exists() {
        std::fs::remove_dir_all(&grown)
            .with_context(|| format!("{} cannot be removed", grown.display()))?;
    }
    for directory in [&grown, &found] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("{} cannot be made", directory.display()))?;
    }
    let mut command = Command::new(programs.join(target));
    command.arg(&grown).arg(root().join("fuzz/corpus").join(target));
    command.args(hostile.map(|kind| root().join("tests/hostile/corpus").join(kind)));
    command.arg(format!("-max_total_time={}", time.as_secs()));
    command.arg(format!("-rss_limit_mb={MOST_MEMORY_MIB}"));
    command.arg(format!("-timeout={MOST_SECONDS_PER_INPUT}"));
    command.arg(format!("-artifact_prefix={}/", found.display()));
    command.args(["-print_final_stats=1", "-verbosity=1"]);
    let ended = command
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("fuzz target {target} could not be started"))?;
    let said = String::from_utf8_lossy(&ended.stderr);
    if !ended.status.success() {
        let log = found.join("log");
        std::fs::write(&log, &ended.stderr)
            .with_context(|| format!("{} cannot be written", log.display()))?;
        let tail: Vec<&str> = said.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!(
            "fuzz target {target} found something: {}\n{}\nthe whole log is {}; keep the input \
             in fuzz/corpus/{target} with the fix",
            ended.status,
            tail.join("\n"),
            log.display()
        );
    }
    let runs = figure(&said, "stat::number_of_executed_units:")
        .with_context(|| format!("fuzz target {target} does not say how often it ran"))?;
    let edges = said.lines().rev().find_map(|line| figure(line, "cov:"));
    let edges = edges.filter(|edges| *edges > 0);
    let edges =
        edges.with_context(|| format!("fuzz target {target} was built without coverage"))?;
    Ok(format!("fuzz target {target}: {runs} inputs, {edges} edges, nothing found"))
}

/// The number after a word.
fn figure(text: &str, word: &str) -> Option<u64> {
    let (_, after) = text.split_once(word)?;
    after.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_what_the_fuzzer_says() {
        let said = "#2\tINITED cov: 812 ft: 901 corp: 1/1b\nstat::number_of_executed_units: 77\n";
        assert_eq!(figure(said, "cov:"), Some(812));
        assert_eq!(figure(said, "stat::number_of_executed_units:"), Some(77));
        assert_eq!(figure(said, "exec/s:"), None);
    }

    #[test]
    fn wrong_arguments_are_refused_before_anything_is_built() {
        for wrong in [&["--seconds"][..], &["--seconds", "x"], &["--seconds", "0"], &["nothing"]] {
            let wrong: Vec<String> = wrong.iter().map(|word| (*word).to_owned()).collect();
            assert!(fuzz(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_target_has_a_program_and_a_corpus() {
        for (name, _) in TARGETS {
            assert!(root().join("fuzz/fuzz_targets").join(format!("{name}.rs")).is_file());
            assert!(root().join("fuzz/corpus").join(name).is_dir());
        }
        let programs = root().join("fuzz/fuzz_targets").read_dir().expect("the targets");
        assert_eq!(programs.count(), TARGETS.len());
    }
}
