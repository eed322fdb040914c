//! A checkpoint's bytes from disk, with nothing of them in memory.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;
use tpad_peers::cpu;

use crate::children::{self, on};
use crate::contest::{Contender, Run, client, contest};
use crate::figures::{Row, Sample};
use crate::place::{self, Place};
use crate::servers::{self, START, Server, Tiers};
use crate::values::COLD;
use crate::{Plan, say};

/// Whose figures the ratios divide by.
pub(crate) const LIMIT: &str = "fio, O_DIRECT";

/// Requests of a worker at a time.
pub(crate) const CONCURRENCY: &str = "8";

const RUN: Duration = Duration::from_secs(90);

/// There is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Once(pub(crate) &'static str);

impl fmt::Display for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The whole part.
pub(crate) fn run(place: &Place, plan: &Plan) -> Result<Vec<Row>> {
    say("making a checkpoint on disk");
    let root = place.disk.join("cold");
    COLD.checkpoint(place, &root)?;
    let shards = place::files(&root, "safetensors")?;
    let tpad = || {
        let tiers = Tiers {
            models: vec![(COLD, root.display().to_string())],
            dram: "2GiB",
            nvme: Some(place.disk.join("nvme")),
            ..Tiers::default()
        };
        let server = servers::daemon(place, "tpad-cold", &tiers)?;
        settle(place, &server)?;
        anyhow::Ok(server)
    };
    let tpad = tpad();
    let loader = |name: &'static str| loader(place, name, &shards);
    let contenders = [
        (LIMIT, fio(place, &shards)),
        ("tpad, from disk to its memory", prefetch(place, &tpad, &[])),
        ("tpad, from disk to a worker over TCP", worker(place, &tpad)),
        ("Run:ai model streamer", loader("runai")),
        ("safetensors, mmap", loader("safetensors")),
        ("fastsafetensors, without GDS", loader("fastsafetensors")),
    ];
    let contenders: Vec<_> = contenders
        .into_iter()
        .filter(|(name, _)| plan.wants(name, LIMIT))
        .map(|(name, run)| Contender { name, run, at: |_: &Once| true })
        .collect();
    let case = [Once("768 MiB from disk")];
    contest(place, &contenders, &case, plan.rounds, |_| place::forget(&shards))
}

/// Waits until all blocks are on disk: admission is not part of a fetch.
fn settle(place: &Place, server: &Server) -> Result<()> {
    let until = Instant::now() + START;
    loop {
        let answer =
            children::output(&mut bench_cold(place, server, true)?, &place.log("settle"), RUN)?;
        let answer: Value = serde_json::from_str(&answer).context("tpactl's answer")?;
        let reads = &answer["rounds"][0]["reads"];
        if reads["nvme"].as_u64() == Some(COLD.keys as u64) {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("not all blocks came from disk: {reads}");
        }
    }
}

/// `tpactl bench cold`, of the disk or of what is behind it.
pub(crate) fn bench_cold(place: &Place, server: &Server, disk: bool) -> Result<Command> {
    let mut command = server.tpactl(place, &place.all)?;
    command.args(["bench", "cold", "--json", "--rounds", "1", "--tier", "base", "--no-verify"]);
    command.args(["--concurrency", CONCURRENCY, "--model", &COLD.model()]);
    command.args(["--level", "dram"].iter().filter(|_| disk));
    Ok(command)
}

fn worker<'a>(place: &'a Place, server: &'a Result<Server>) -> Result<Run<'a, Once>> {
    let server = server.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok(Box::new(move |_| {
        client(place, bench_cold(place, server, true), Sample::of_tpactl, "client")
    }))
}

/// To where a worker of this machine would be served from; `behind` serves the daemon.
pub(crate) fn prefetch<'a>(
    place: &'a Place,
    server: &'a Result<Server>,
    behind: &[u32],
) -> Result<Run<'a, Once>> {
    let server = server.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    let servers = [&server.pids()[..], behind].concat();
    Ok(Box::new(move |_| {
        let scope = ["--model", &COLD.model(), "--tier", "base"].map(str::to_owned);
        let mut evict = server.tpactl(place, &place.all)?;
        place.prepare(evict.arg("evict").args(&scope).args(["--level", "dram"]))?;
        let mut prefetch = server.tpactl(place, &place.all)?;
        prefetch.args(["prefetch", "--json"]).args(&scope);
        let (answer, sample) = timed(place, &mut prefetch, &servers)?;
        let answer: Value = serde_json::from_str(&answer).context("tpactl's answer")?;
        let bytes = answer["fetched"]["bytes"].as_u64().context("no bytes fetched")?;
        Ok(sample(bytes))
    }))
}

/// Runs a command that does not say what it took: wall time from its start to its
/// end, processor time of it and of `servers`.
pub(crate) fn timed(
    place: &Place,
    command: &mut Command,
    servers: &[u32],
) -> Result<(String, impl Fn(u64) -> Sample + use<>)> {
    // What this process has waited for counts as its own, and so do the servers, which it
    // started.
    let (own, before) = (cpu::own_seconds()?, cpu::trees_seconds(servers)?);
    let began = Instant::now();
    let answer = children::output(command, &place.log("client"), RUN)?;
    let seconds = began.elapsed().as_secs_f64();
    let server = cpu::trees_seconds(servers)? - before;
    let client = cpu::own_seconds()? - own - server;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let sample = move |bytes: u64| {
        let gb = bytes as f64 / 1e9;
        Sample {
            gb_per_second: gb / seconds,
            client_cpu: client / gb,
            server_cpu: server / gb,
            ..Sample::default()
        }
    };
    Ok((answer, sample))
}

/// A loader of `python/cold.py`.
fn loader<'a>(
    place: &'a Place,
    name: &'static str,
    shards: &'a [PathBuf],
) -> Result<Run<'a, Once>> {
    place.tool("python")?;
    Ok(Box::new(move |_| {
        let mut command = on(&place.all, place.tool("python")?);
        command.arg(place.script("cold.py")).arg(name).args(shards);
        client(place, Ok(command), Sample::of_outcome, "client")
    }))
}

/// How fio reads: 4 MiB at a time, 16 of them in flight or a job on each quarter.
/// Which is the fastest differs from disk to disk, and a kernel may refuse one.
const WAYS: [&[&str]; 3] = [
    &["--ioengine=io_uring", "--iodepth=16"],
    &["--ioengine=libaio", "--iodepth=16"],
    &["--ioengine=psync", "--numjobs=4", "--size=25%", "--offset_increment=25%"],
];

/// The fastest way of those that work.
fn fio<'a>(place: &'a Place, shards: &'a [PathBuf]) -> Result<Run<'a, Once>> {
    let program = place.system("fio", "fio")?;
    Ok(Box::new(move |_| {
        let files: Vec<String> = shards.iter().map(|file| file.display().to_string()).collect();
        let mut best = Err(anyhow!("fio was not run"));
        for way in WAYS {
            let mut command = on(&place.all, &program);
            command.args(["--name=limit", "--rw=read", "--direct=1", "--bs=4M", "--readonly"]);
            command.args(way).arg("--output-format=json");
            command.arg(format!("--filename={}", files.join(":")));
            command.current_dir(&place.memory);
            let answer = children::output(&mut command, &place.log("client"), RUN);
            best = faster(best, answer.and_then(|answer| fio_sample(&answer)));
        }
        best
    }))
}

fn faster(best: Result<Sample>, next: Result<Sample>) -> Result<Sample> {
    match (best, next) {
        (Ok(best), Ok(next)) if next.gb_per_second > best.gb_per_second => Ok(next),
        (Ok(best), _) => Ok(best),
        (Err(_), next) => next,
    }
}

/// All jobs together, to the end of the last.
fn fio_sample(answer: &str) -> Result<Sample> {
    let answer: Value = serde_json::from_str(answer).context("fio's answer")?;
    let number =
        |value: &Value, key: &str| value[key].as_f64().with_context(|| format!("no {key}"));
    let (mut bytes, mut seconds, mut busy) = (0.0, 0.0_f64, 0.0);
    for job in answer["jobs"].as_array().context("no jobs")? {
        let took = number(&job["read"], "runtime")? / 1e3;
        bytes += number(&job["read"], "io_bytes")?;
        busy += (number(job, "usr_cpu")? + number(job, "sys_cpu")?) / 100.0 * took;
        seconds = seconds.max(took);
    }
    let gb = bytes / 1e9;
    if gb <= 0.0 || seconds <= 0.0 {
        bail!("fio read nothing");
    }
    Ok(Sample { gb_per_second: gb / seconds, client_cpu: busy / gb, ..Sample::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fio_is_read_by_bytes_and_milliseconds() {
        let answer = r#"{"jobs": [{"read": {"io_bytes": 2000000000, "runtime": 1000},
            "usr_cpu": 1.0, "sys_cpu": 9.0}]}"#;
        let sample = fio_sample(answer).expect("it is whole");
        assert!((sample.gb_per_second - 2.0).abs() < 1e-9);
        assert!((sample.client_cpu - 0.05).abs() < 1e-9);
    }

    #[test]
    fn jobs_of_fio_add_up_and_the_last_to_end_counts() {
        let job = |ms: u32| {
            format!(
                r#"{{"read": {{"io_bytes": 1000000000, "runtime": {ms}}}, "usr_cpu": 0, "sys_cpu": 10}}"#
            )
        };
        let sample = fio_sample(&format!(r#"{{"jobs": [{}, {}]}}"#, job(500), job(1000)));
        let sample = sample.expect("it is whole");
        assert!((sample.gb_per_second - 2.0).abs() < 1e-9);
        assert!((sample.client_cpu - 0.075).abs() < 1e-9);
        assert!(fio_sample(r#"{"jobs": []}"#).is_err());
    }

    #[test]
    fn the_limit_is_the_fastest_way_that_works() {
        let at = |gb_per_second| Ok(Sample { gb_per_second, ..Sample::default() });
        let refused = || Err(anyhow!("refused"));
        let speed = |result: Result<Sample>| result.expect("one works").gb_per_second;
        assert_eq!(speed(faster(at(1.0), at(2.0))), 2.0);
        assert_eq!(speed(faster(at(2.0), refused())), 2.0);
        assert_eq!(speed(faster(refused(), at(1.0))), 1.0);
        assert!(faster(refused(), refused()).is_err());
    }
}
