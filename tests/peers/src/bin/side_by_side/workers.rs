//! Many workers of gRPC's own library at one server on one processor: what a server
//! gives when its clients are not the bound. A single client process of grpcio is
//! full long before either server is (part `wire`). Beside them the raw loop, without
//! pacing as tpad's listeners are: what one processor can send at all.

use std::fmt;
use std::process::Command;

use anyhow::{Result, anyhow};

use crate::children::on;
use crate::contest::{Contender, Run, client, contest};
use crate::figures::{Row, Sample};
use crate::place::Place;
use crate::servers::{self, Server, Tiers};
use crate::values::{self, SIZES, Size};
use crate::{Plan, say};

/// Whose figures the ratios divide by.
pub(crate) const LIMIT: &str = "generated tonic";

/// Long enough for some hundreds of values.
const WARMUP: &str = "0.5";
const SECONDS: &str = "2";

/// Requests that each process has in flight.
const REQUESTS: usize = 2;

/// More processes than this and the memory of the values they hold is what is measured.
const MOST_PROCESSES: usize = 8;

/// So many processes of the client.
#[derive(Clone, Copy, Debug)]
struct Case {
    processes: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processes } = self;
        write!(f, "{} to {processes} processes x {REQUESTS}", value().name)
    }
}

/// What is fetched.
fn value() -> Size {
    SIZES[1]
}

/// The whole part.
pub(crate) fn run(place: &Place, plan: &Plan) -> Result<Vec<Row>> {
    let place = &place.with_one_server_processor();
    say("starting servers for many workers");
    let values = values::write(place, &[value()])?;
    let tonic = servers::ours(place, "generated-tonic", &values, &[]);
    let tpad = tpad(place);
    let raw = servers::ours(place, "raw-tcp", &values, &["--congestion", "reno"]);
    let contenders = vec![
        Contender { name: LIMIT, run: grpcio(place, &tonic), at: |_| true },
        Contender { name: "tpad", run: grpcio(place, &tpad), at: |_| true },
        Contender { name: "raw TCP loop, Reno", run: raw_loop(place, &raw), at: |_| true },
    ];
    let case = Case { processes: place.client_processors.min(MOST_PROCESSES) };
    contest(place, &contenders, &[case], plan.rounds, |_| Ok(()))
}

/// As many requests at a time, by one process that only receives.
fn raw_loop<'a>(place: &'a Place, server: &'a Result<Server>) -> Result<Run<'a, Case>> {
    let server = server.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok(Box::new(move |case| {
        let mut command = on(&place.client, place.program("peer-load")?);
        command.arg("raw");
        load(&mut command, server);
        command.args(["--concurrency", &(case.processes * REQUESTS).to_string()]);
        client(place, Ok(command), Sample::of_outcome, "workers")
    }))
}

/// What both clients are told.
fn load(command: &mut Command, server: &Server) {
    command.arg("--addr").arg(server.address.to_string());
    command.args(["--bytes", &value().bytes().to_string()]);
    command.args(["--keys", &value().keys.to_string()]);
    command.args(["--warmup", WARMUP, "--seconds", SECONDS]);
    for pid in server.pids() {
        command.arg("--server").arg(pid.to_string());
    }
}

/// grpcio with the options that docs/operations.md recommends.
fn grpcio<'a>(place: &'a Place, server: &'a Result<Server>) -> Result<Run<'a, Case>> {
    let server = server.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok(Box::new(move |case| {
        let mut command = on(&place.client, place.tool("python")?);
        command.arg(place.script("grpc_load.py")).arg("--tpad");
        load(&mut command, server);
        command.args(["--processes", &case.processes.to_string()]);
        command.args(["--concurrency", &REQUESTS.to_string()]);
        client(place, Ok(command), Sample::of_outcome, "workers")
    }))
}

fn tpad(place: &Place) -> Result<Server> {
    let mut tiers = Tiers { dram: "1GiB", pinned: true, ..Tiers::default() };
    let root = place.memory.join("checkpoints-workers").join(value().model());
    value().checkpoint(place, &root)?;
    tiers.models.push((value(), root.display().to_string()));
    servers::daemon(place, "tpad-workers", &tiers)
}
