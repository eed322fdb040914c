//! Blocks used in place by a worker of the daemon's node, beside the least that a call to
//! another process costs: an empty one over a Unix socket.

use std::fmt;
use std::path::Path;

use anyhow::{Result, anyhow};

use crate::children::{Child, on};
use crate::contest::{Contender, Run, client, contest};
use crate::figures::{Row, Sample};
use crate::place::Place;
use crate::servers::{self, Server, Tiers};
use crate::values::{self, SIZES, SMALL, Size};
use crate::{Plan, say};

/// Whose figures the ratios divide by.
pub(crate) const LIMIT: &str = "empty tonic unary call";

/// Some thousands of calls, so that a 99th percentile stands on some ten.
const SECONDS: &str = "1.5";
const WARMUP: &str = "0.3";

/// How large the blocks are. The empty call has none, and runs beside each all the same.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case(Size);

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name)
    }
}

/// The whole part.
pub(crate) fn run(place: &Place, plan: &Plan) -> Result<Vec<Row>> {
    say("starting servers for handoff");
    let (calls, held) = (place.memory.join("calls.sock"), place.memory.join("held.sock"));
    let values = values::write(place, &[SMALL])?;
    let tonic = servers::tonic_at(place, &calls, &values);
    let tpad = tpad(place, &held);
    let contenders = vec![
        Contender { name: LIMIT, run: empty(place, &tonic, &calls), at: |_| true },
        Contender {
            name: "tpad, Acquire and Release",
            run: ours(place, &tpad, &held, "acquire"),
            at: |_| true,
        },
        Contender {
            name: "tpad, hold by the directory",
            run: ours(place, &tpad, &held, "hold"),
            at: |_| true,
        },
    ];
    let cases = if plan.quick { &SIZES[1..2] } else { &SIZES[..] };
    let cases: Vec<Case> = cases.iter().copied().map(Case).collect();
    contest(place, &contenders, &cases, plan.rounds, |_| Ok(()))
}

fn empty<'a>(place: &'a Place, server: &Result<Child>, socket: &'a Path) -> Result<Run<'a, Case>> {
    server.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok(Box::new(move |_| {
        let mut command = on(&place.client, place.program("peer-load")?);
        command.arg("empty").arg("--uds").arg(socket);
        command.args(["--warmup", WARMUP, "--seconds", SECONDS]);
        client(place, Ok(command), Sample::of_outcome, "client")
    }))
}

/// One of `peer-load`'s ways to a block in place.
fn ours<'a>(
    place: &'a Place,
    server: &Result<Server>,
    socket: &'a Path,
    way: &'static str,
) -> Result<Run<'a, Case>> {
    server.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok(Box::new(move |Case(size)| {
        let mut command = on(&place.client, place.program("peer-load")?);
        command.arg(way).arg("--socket").arg(socket).args(["--model", &size.model()]);
        command.arg("--bytes").arg(size.bytes().to_string());
        command.arg("--keys").arg(size.keys.to_string());
        command.args(["--warmup", WARMUP, "--seconds", SECONDS]);
        client(place, Ok(command), Sample::of_outcome, "client")
    }))
}

fn tpad(place: &Place, socket: &Path) -> Result<Server> {
    let handoff = Some(socket.to_owned());
    let mut tiers = Tiers { dram: "2GiB", handoff, pinned: true, ..Tiers::default() };
    for size in SIZES {
        let root = place.memory.join("checkpoints-handoff").join(size.model());
        size.checkpoint(place, &root)?;
        tiers.models.push((size, root.display().to_string()));
    }
    servers::daemon(place, "tpad-handoff", &tiers)
}
