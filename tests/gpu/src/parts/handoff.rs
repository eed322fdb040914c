//! How fast a worker has what the daemon has.

use std::os::fd::AsFd as _;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::Spread;
use crate::child::{Process, worker};
use crate::log::Log;
use crate::stage::{MIB, Stage};

/// Measures how long another process takes to map slabs, by their size.
///
/// # Errors
/// When it cannot.
pub async fn run(stage: &Stage, log: &Log) -> Result<()> {
    let device = stage.device()?;
    let uuid = device.facts().uuid.to_string();
    let worker = Process::start(stage, "worker", &[])?;
    let sizes = if stage.is_gpu() { vec![2, 64, 1024] } else { vec![2, 32] };
    for mib in sizes {
        let (mut makes, mut exports, mut imports, mut calls) = (vec![], vec![], vec![], vec![]);
        for slab in 0..20 {
            let began = Instant::now();
            let memory = device.create(mib * MIB)?;
            makes.push(micros(began));
            let began = Instant::now();
            let descriptor = memory.descriptor()?;
            exports.push(micros(began));
            let (bytes, device) = (mib * MIB, uuid.clone());
            let ask = worker::Ask::Import { slab, bytes, device };
            let began = Instant::now();
            let answer = worker.ask(&ask, Some(descriptor.as_fd()))?;
            calls.push(micros(began));
            match answer {
                #[expect(clippy::cast_precision_loss, reason = "some microseconds")]
                worker::Answer::Imported { nanos } => imports.push(nanos as f64 / 1e3),
                other => bail!("{other:?}"),
            }
            let answer: worker::Answer = worker.ask(&worker::Ask::Forget { slab }, None)?;
            (answer == worker::Answer::Forgotten).then_some(()).context("it was mapped")?;
        }
        let [make, export, import, call] = [makes, exports, imports, calls].map(Spread::of);
        let line = format!(
            "slab of {mib} MiB: made in {:.0} us, exported in {:.0} us, imported by a worker in \
             {:.0} us ({:.0}-{:.0}), with the message {:.0} us",
            make.median, export.median, import.median, import.low, import.high, call.median
        );
        let values = json!({
            "slab_bytes": mib * MIB, "make_us": make.json(), "export_us": export.json(),
            "import_us": import.json(), "call_us": call.json(),
        });
        log.say(&line, "handoff", &values);
    }
    Ok(())
}

fn micros(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e6
}
