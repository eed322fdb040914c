//! Small requests, idle and while another client reads large values from the same
//! server.
//!
//! That client would be another machine's. Here both share processors, so it gives way
//! to the one that is measured.

use std::fmt;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};

use crate::children::{Child, last, on};
use crate::contest::{Contender, Run, client, contest};
use crate::figures::{Row, Sample};
use crate::place::Place;
use crate::servers::{self, Server, Tiers};
use crate::values::{self, SIZES, SMALL};
use crate::{Plan, say};

/// Whose figures the ratios divide by.
pub(crate) const LIMIT: &str = "empty tonic unary call";

/// Some thousands of requests, so that a 99th percentile stands on some ten.
const SECONDS: &str = "1.5";
const WARMUP: &str = "0.3";

/// Whether somebody else reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Case {
    Idle,
    Loaded,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Loaded => "beside 16 MiB x 4",
        })
    }
}

/// The whole part.
pub(crate) fn run(place: &Place, plan: &Plan) -> Result<Vec<Row>> {
    say("starting servers for small requests");
    let large = SIZES[1];
    let values = values::write(place, &[large])?;
    let tonic = servers::ours(place, "generated-tonic", &values, &[]);
    let tpad = tpad(place);
    let empty = tonic.as_ref().map_err(|error| anyhow!("{error:#}")).map(|server| {
        let run: Run<'_, Case> = Box::new(move |case| {
            let mut bulk = on(&place.client, place.program("peer-load")?);
            bulk.arg("tonic").arg("--addr").arg(server.address.to_string());
            bulk.arg("--bytes").arg(large.bytes().to_string());
            bulk.arg("--keys").arg(large.keys.to_string());
            bulk.args(["--concurrency", "4", "--seconds", "60"]);
            let mut command = on(&place.client, place.program("peer-load")?);
            command.arg("empty").arg("--addr").arg(server.address.to_string());
            command.args(["--warmup", WARMUP, "--seconds", SECONDS]);
            beside(place, *case, bulk, || client(place, Ok(command), Sample::of_outcome, "client"))
        });
        run
    });
    let contenders = vec![
        Contender { name: LIMIT, run: empty, at: |_| true },
        Contender { name: "tpad, mask", run: ours(place, &tpad, "mask", &[]), at: |_| true },
        Contender {
            name: "tpad, fetch of 4.5 KiB",
            run: ours(place, &tpad, "fetch", &["--no-verify"]),
            at: |_| true,
        },
    ];
    contest(place, &contenders, &[Case::Idle, Case::Loaded], plan.rounds, |_| Ok(()))
}

fn ours<'a>(
    place: &'a Place,
    server: &'a Result<Server>,
    what: &'static str,
    extra: &'static [&'static str],
) -> Result<Run<'a, Case>> {
    let server = server.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok(Box::new(move |case| {
        let mut bulk = server.tpactl(place, &place.client)?;
        bulk.args(["bench", "fetch", "--no-verify", "--concurrency", "4", "--duration", "60"]);
        bulk.args(["--model", &SIZES[1].model()]);
        let mut command = server.tpactl(place, &place.client)?;
        command.args(["bench", what, "--json", "--model", &SMALL.model(), "--concurrency", "1"]);
        command.args(["--warmup", WARMUP, "--duration", SECONDS]).args(extra);
        beside(place, *case, bulk, || client(place, Ok(command), Sample::of_tpactl, "client"))
    }))
}

/// Measures, while the other client reads where the case says so.
fn beside(
    place: &Place,
    case: Case,
    bulk: Command,
    measure: impl FnOnce() -> Result<Sample>,
) -> Result<Sample> {
    if case == Case::Idle {
        return measure();
    }
    let mut other = Child::start(&mut last(&bulk), place.log("bulk"))?;
    let sample = measure()?;
    // A figure beside a client that had given up would be an idle one.
    other.still_runs().context("the other client")?;
    Ok(sample)
}

fn tpad(place: &Place) -> Result<Server> {
    let mut tiers = Tiers { dram: "2GiB", pinned: true, ..Tiers::default() };
    for size in [SMALL, SIZES[1]] {
        let root = place.memory.join("checkpoints-latency").join(size.model());
        size.checkpoint(place, &root)?;
        tiers.models.push((size, root.display().to_string()));
    }
    servers::daemon(place, "tpad-latency", &tiers)
}
