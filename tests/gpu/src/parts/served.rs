//! A real daemon, and workers in processes of their own: how soon a tier is usable.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Spread, judge};
use crate::child::Process;
use crate::child::client::{Answer, Ask};
use crate::log::Log;
use crate::stage::{MIB, Machine, Stage};

/// A model that is made up: its name, and the options of `tpactl synth`.
struct Model {
    name: &'static str,
    options: &'static [&'static str],
}

/// 24 experts of 336 MiB, 8 GiB; and 128 of 1 MiB.
const ON_A_GPU: [Model; 2] = [
    Model { name: "large", options: &["--layers", "3", "--experts", "8", "--vocab", "256"] },
    Model {
        name: "small",
        options: &[
            "--layers",
            "16",
            "--experts",
            "8",
            "--vocab",
            "256",
            "--hidden",
            "512",
            "--intermediate",
            "340",
        ],
    },
];
const ON_THE_STAND_IN: [Model; 1] = [Model {
    name: "small",
    options: &[
        "--layers",
        "2",
        "--experts",
        "8",
        "--vocab",
        "256",
        "--hidden",
        "512",
        "--intermediate",
        "340",
    ],
}];

/// Loads a checkpoint's expert tensors as one would without tpad, from a CUDA context that
/// is ready: milliseconds and bytes.
const SAFETENSORS: &str = r#"
import glob, json, sys, time
import torch
from safetensors import safe_open
torch.cuda.init(); torch.zeros(1, device="cuda:0"); torch.cuda.synchronize()
began, size, kept = time.monotonic(), 0, []
for path in sorted(glob.glob(sys.argv[1] + "/*.safetensors")):
    with safe_open(path, framework="pt", device="cuda:0") as shard:
        for name in shard.keys():
            if ".experts." in name:
                kept.append(shard.get_tensor(name))
                size += kept[-1].numel() * kept[-1].element_size()
torch.cuda.synchronize()
print(json.dumps({"ms": (time.monotonic() - began) * 1e3, "bytes": size}))
"#;

/// Workers that are killed while they hold a tier.
const KILLS: usize = 5;
/// A tier of 8 GiB is usable again within this of a context.
const USABLE_MILLIS: f64 = 2000.0;
/// A block that is there is acquired within this by a call ...
const ACQUIRE_MICROS: f64 = 100.0;
/// ... and within this by the directory.
const FIND_MICROS: f64 = 1.0;
/// The work that outlasts its lease.
const DELAY: Duration = Duration::from_secs(1);

/// The daemon. Dropped, it is killed.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// Makes models, starts the daemon of `programs` on them, and has workers use them.
///
/// # Errors
/// When something does not run.
pub async fn run(stage: &Stage, log: &Log, programs: &Path) -> Result<bool> {
    let scratch = std::env::temp_dir().join(format!("tpad-gpu-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let outcome = play(stage, log, programs, &scratch).await;
    let _gone = std::fs::remove_dir_all(&scratch);
    outcome
}

async fn play(stage: &Stage, log: &Log, programs: &Path, scratch: &Path) -> Result<bool> {
    let free = stage.device()?.memory()?.free_bytes;
    let models: &[Model] = if stage.is_gpu() { &ON_A_GPU } else { &ON_THE_STAND_IN };
    let tpactl = |arguments: &[&str]| -> Result<String> {
        let output = Command::new(programs.join("tpactl")).args(arguments).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let mut sections = String::new();
    for Model { name, options } in models {
        let root = scratch.join(name).display().to_string();
        tpactl(&[&["synth", &root, "--preset", "mixtral-8x7b"][..], options].concat())?;
        tpactl(&["import", &root, "--model", name])?;
        tpactl(&["tier", "set-placement", &root, "base", "hbm"])?;
        sections += &format!("[[models]]\nname = \"{name}\"\nroot = {root:?}\n");
    }
    let socket = scratch.join("tpad.sock");
    let address = format!("unix://{}", socket.display());
    let (dram, hbm) = if stage.is_gpu() { (14_000, 10_240) } else { (64, 64) };
    let stand_in = match &stage.machine {
        Machine::Cuda => String::new(),
        Machine::StandIn { directory, .. } => format!("stand_in = {directory:?}\n"),
    };
    let config = format!(
        "follow_interval = \"0s\"\n{sections}[listen]\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n\
         uds = {socket:?}\n[levels.dram]\ncapacity = \"{dram}MiB\"\n\
         [levels.hbm]\ncapacity = \"{hbm}MiB\"\n{stand_in}"
    );
    let path = scratch.join("tpad.toml");
    std::fs::write(&path, config)?;
    let began = Instant::now();
    let logged = std::fs::File::create(scratch.join("tpad.log"))?;
    let mut serve = Command::new(programs.join("tpad"));
    serve.arg("serve").arg("--config").arg(&path).stdin(Stdio::null()).stderr(logged);
    let daemon = Daemon(serve.spawn().context("tpad does not run")?);
    warm(&address, &tpactl, scratch).await?;
    let home = began.elapsed().as_secs_f64();
    log.say(
        &format!("tiers at home {home:.1} s after the start"),
        "home",
        &json!({"seconds": home}),
    );

    let mut holds = true;
    for Model { name, .. } in models {
        let start = || Process::start(stage, "client", &[address.clone(), (*name).to_owned()]);
        let mut usable = Vec::new();
        let mut size = (0, 0);
        let mut worker = start()?;
        for n in 0..=KILLS {
            match worker.ask(&Ask::Hold, None)? {
                Answer::Held { millis, blocks, bytes } => {
                    usable.push(millis);
                    size = (blocks, bytes);
                }
                other => bail!("{other:?}"),
            }
            if n % 2 == 1 {
                // By leases, and by its cells alone.
                let Answer::Held { .. } = worker.ask(&Ask::HoldDirectly, None)? else {
                    bail!("it holds nothing")
                };
            }
            // With kill -9, while it holds everything.
            worker.kill()?;
            worker = start()?;
        }
        let Answer::Held { .. } = worker.ask(&Ask::Hold, None)? else { bail!("it holds nothing") };
        let right: Answer = worker.ask(&Ask::Check, None)?;
        ensure!(right == Answer::Right(true), "wrong bytes");
        let (blocks, bytes) = size;
        let gib = f64::from(u32::try_from(bytes / MIB)?) / 1024.0;
        let usable = Spread::of(usable);
        let line = format!(
            "{name}, {blocks} blocks, {gib:.2} GiB: usable by a new worker {:.0} ms ({:.0}-{:.0}) after \
             its context was ready, workers killed in between",
            usable.median, usable.low, usable.high
        );
        log.say(
            &line,
            "usable",
            &json!({ "model": name, "blocks": blocks, "bytes": bytes, "ms": usable.json() }),
        );
        holds &= judge(log, stage.is_gpu(), "usable in under 2 s", usable.high < USABLE_MILLIS);
        for (directly, how, most) in
            [(false, "a call", ACQUIRE_MICROS), (true, "the directory", FIND_MICROS)]
        {
            let asked = worker.ask(&Ask::Acquire { times: 2000, directly }, None)?;
            let Answer::Took { median, p99 } = asked else { bail!("it acquires nothing") };
            let line = format!(
                "{name}: acquire of a block that is there by {how} {median:.2} us, p99 {p99:.2} us"
            );
            let values = json!({
                "model": name, "directly": directly, "median_us": median, "p99_us": p99,
            });
            log.say(&line, "acquire", &values);
            let what = format!("acquire by {how} in under {most:.0} us");
            holds &= judge(log, stage.is_gpu(), &what, median < most);
        }
        for directly in [false, true] {
            if directly {
                let held: Answer = worker.ask(&Ask::Hold, None)?;
                ensure!(matches!(held, Answer::Held { .. }), "it holds nothing");
                let held: Answer = worker.ask(&Ask::HoldDirectly, None)?;
                ensure!(matches!(held, Answer::Held { .. }), "the directory has nothing");
            }
            let delay_ms = u64::try_from(DELAY.as_millis())?;
            let Answer::Launched = worker.ask(&Ask::ReadLate { delay_ms }, None)? else {
                bail!("nothing was launched")
            };
            let evict = ["evict", "--model", name, "--tier", "base", "--level", "hbm"];
            tpactl(&[&["--addr", &address][..], &evict].concat())?;
            let second = start()?;
            let Answer::Held { .. } = second.ask(&Ask::Hold, None)? else {
                bail!("it holds nothing")
            };
            let late: Answer = worker.ask(&Ask::Late, None)?;
            ensure!(late == Answer::Right(true), "work that was launched read something else");
            let right: Answer = second.ask(&Ask::Check, None)?;
            ensure!(right == Answer::Right(true), "wrong bytes");
            let how = if directly { "the directory" } else { "a lease" };
            let line = format!(
                "{name}: work launched before the drop read its block, held by {how}, evicted meanwhile"
            );
            log.say(&line, "late", &json!({ "model": name, "directly": directly }));
        }
    }
    drop(daemon);
    if stage.is_gpu() {
        for Model { name, .. } in models {
            beside(log, name, &scratch.join(name));
        }
    }
    let after = stage.memory_returns(free).await?;
    let line = format!("free again: {} of {} MiB", after / MIB, free / MIB);
    log.say(&line, "returned", &json!({ "before": free, "after": after }));
    Ok(holds)
}

/// The same tensors by safetensors, where Python has it: each time in a new process, from
/// files that were just written and lie in the page cache.
fn beside(log: &Log, name: &str, root: &Path) {
    let mut loads = Vec::new();
    let mut problem = String::new();
    for _ in 0..3 {
        let output = Command::new("python3").args(["-c", SAFETENSORS]).arg(root).output();
        match output {
            Ok(output) if output.status.success() => {
                let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
                loads.extend(said["ms"].as_f64());
            }
            Ok(output) => problem = String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => problem = error.to_string(),
        }
    }
    if loads.is_empty() {
        let last = problem.lines().last().unwrap_or("no Python").to_owned();
        log.say(
            &format!("{name}: not loaded by safetensors: {last}"),
            "beside",
            &json!({ "model": name }),
        );
        return;
    }
    let loads = Spread::of(loads);
    let line = format!(
        "{name}: the same tensors by safetensors, files in the page cache: {:.0} ms ({:.0}-{:.0}) from a context",
        loads.median, loads.low, loads.high
    );
    log.say(&line, "beside", &json!({ "model": name, "ms": loads.json() }));
}

/// Waits until every tier is at home.
async fn warm(
    address: &str,
    tpactl: &impl Fn(&[&str]) -> Result<String>,
    scratch: &Path,
) -> Result<()> {
    let began = Instant::now();
    loop {
        if let Ok(status) = tpactl(&["--addr", address, "status", "--json"]) {
            let status: Value = serde_json::from_str(&status)?;
            let models = status["models"].as_array().cloned().unwrap_or_default();
            let tiers =
                models.iter().flat_map(|model| model["tiers"].as_array().into_iter().flatten());
            let homes: Vec<(&Value, &Value)> =
                tiers.map(|tier| (&tier["warm"]["state"], &tier["home"])).collect();
            if !homes.is_empty() && homes.iter().all(|(state, _)| *state == "warm") {
                ensure!(homes.iter().all(|(_, home)| *home == "hbm"), "{:#}", status["hbm"]);
                return Ok(());
            }
        }
        if began.elapsed() > Duration::from_secs(180) {
            let log: PathBuf = scratch.join("tpad.log");
            bail!("the tiers do not come home:\n{}", std::fs::read_to_string(log)?);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
