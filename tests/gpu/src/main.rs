//! `tpad-gpu`: what must hold of GPU memory, on a machine with a GPU.
//!
//! ```text
//! tpad-gpu [--stand-in DIRECTORY] [--log FILE] [--kills N] [--streams N]
//!          [--programs DIRECTORY] [PART...]
//! ```
//!
//! Parts are `probe`, `suite` (or one case by its name), `handoff`, `rates` (`rates:1` for
//! blocks of 1 MiB alone), and `served`, which starts the `tpad` and `tpactl` of a
//! directory; without any, all of them. `--streams` has the level copy on so many. It ends
//! with 1 if something does not hold, and with 2 if there is no GPU.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tpad_gpu::child;
use tpad_gpu::log::Log;
use tpad_gpu::parts::{handoff, probe, rates, served};
use tpad_gpu::stage::{MIB, Machine, Stage};
use tpad_gpu::suite::CASES;
use tpad_hbm::HbmConfig;

/// How often processes are killed in each case unless it is said.
const KILLS: u32 = 50;
/// A case that takes longer hangs.
const CASE_DEADLINE: Duration = Duration::from_secs(300);

struct Arguments {
    machine: Machine,
    log: Option<PathBuf>,
    kills: u32,
    streams: usize,
    /// Where `tpad` and `tpactl` are.
    programs: Option<PathBuf>,
    parts: Vec<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            use std::io::Write as _;
            let _closed = writeln!(std::io::stderr(), "tpad-gpu: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if let Some(role) = arguments.peek().and_then(|first| first.to_str())
        && matches!(role, "client" | "worker" | "daemon")
    {
        let role = role.to_owned();
        arguments.next();
        child::play(&role, &mut arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Arguments { machine, log, kills, streams, programs, parts } = Arguments::parse(arguments)?;
    let driver = machine.driver()?;
    let name = driver.devices()?.first().map_or(String::new(), |facts| facts.name.clone());
    let log = Log::new(format!("{}, {name}", driver.version()), log.as_deref())?;
    let program = std::env::current_exe()?;
    let stage = Stage { driver, machine, program, kills, streams };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut holds = true;
    for part in &parts {
        log.say(&format!("== {part}"), "part", &json!({ "part": part }));
        holds &= match part.as_str() {
            "probe" => probe::run(&stage, &log).map(|()| true)?,
            "suite" => CASES
                .iter()
                .map(|case| case.name)
                .fold(true, |holds, name| holds & run_case(&stage, &log, &runtime, name)),
            "handoff" => runtime.block_on(handoff::run(&stage, &log)).map(|()| true)?,
            "rates" => runtime.block_on(rates::run(&stage, &log, None))?,
            "served" => {
                let programs = programs.as_deref().context("--programs DIRECTORY is missing")?;
                runtime.block_on(served::run(&stage, &log, programs))?
            }
            part => match part.strip_prefix("rates:") {
                Some(mib) => runtime.block_on(rates::run(&stage, &log, Some(mib.parse()?)))?,
                None => run_case(&stage, &log, &runtime, part),
            },
        };
    }
    let verdict = if holds { "all of it holds" } else { "something does NOT hold" };
    log.say(&format!("== {verdict}"), "end", &json!({ "holds": holds }));
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_case(stage: &Stage, log: &Log, runtime: &tokio::runtime::Runtime, name: &str) -> bool {
    let Some(case) = CASES.iter().find(|case| case.name == name) else {
        log.say(&format!("{name}: no such part or case"), "case", &json!({ "case": name }));
        return false;
    };
    let began = Instant::now();
    let deadline = tokio::time::timeout;
    let outcome =
        runtime.block_on(async { deadline(CASE_DEADLINE, case.run(stage.clone())).await });
    let seconds = began.elapsed().as_secs_f64();
    let problem = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{error:#}")),
        Err(_) => Some("it hangs".to_owned()),
    };
    let said =
        problem.as_ref().map_or_else(|| "ok".to_owned(), |problem| format!("FAILED: {problem}"));
    let values = json!({ "case": name, "seconds": seconds, "problem": problem });
    log.say(&format!("{name}: {said} ({seconds:.2} s)"), "case", &values);
    problem.is_none()
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Self> {
        let (mut machine, mut log, mut kills) = (Machine::Cuda, None, KILLS);
        let (mut programs, mut parts) = (None, Vec::new());
        let mut streams = HbmConfig::STREAMS;
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().context("a value is missing");
            match argument.to_str() {
                Some("--stand-in") => {
                    let directory = value()?.into();
                    machine = Machine::StandIn { directory, devices: 2, bytes: 256 * MIB };
                }
                Some("--log") => log = Some(value()?.into()),
                Some("--programs") => programs = Some(value()?.into()),
                Some("--streams") => streams = value()?.to_string_lossy().parse()?,
                Some("--kills") => kills = value()?.to_string_lossy().parse()?,
                Some(part) if !part.starts_with('-') => parts.push(part.to_owned()),
                _ => bail!("{} is not known", argument.display()),
            }
        }
        if parts.is_empty() {
            parts = ["probe", "suite", "handoff", "rates"].map(str::to_owned).to_vec();
            parts.extend(programs.is_some().then(|| "served".to_owned()));
        }
        Ok(Self { machine, log, kills, streams, programs, parts })
    }
}
