//! Rounds: every peer once at each case, in rotating order, so that what the machine
//! does meanwhile meets all of them alike.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::children;
use crate::figures::{Row, Sample};
use crate::place::Place;
use crate::say;

/// A run takes seconds; one that takes this long is stuck.
const RUN: Duration = Duration::from_secs(90);

/// How a run's figure comes about.
pub(crate) type Run<'a, C> = Box<dyn Fn(&C) -> Result<Sample> + 'a>;

/// Who takes part, or why it cannot.
pub(crate) struct Contender<'a, C> {
    pub(crate) name: &'static str,
    pub(crate) run: Result<Run<'a, C>>,
    /// Whether it takes part in a case.
    pub(crate) at: fn(&C) -> bool,
}

/// What reads a client's answer.
pub(crate) type Reader = fn(&str) -> Result<Sample>;

/// A run of a client that prints its figures.
pub(crate) fn client(
    place: &Place,
    command: Result<Command>,
    read: Reader,
    log: &str,
) -> Result<Sample> {
    read(&children::output(&mut command?, &place.log(log), RUN)?)
}

/// Runs all contenders at all cases, `rounds` times.
pub(crate) fn contest<C: ToString>(
    place: &Place,
    contenders: &[Contender<'_, C>],
    cases: &[C],
    rounds: usize,
    before: impl Fn(&C) -> Result<()>,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for case in cases {
        for contender in contenders.iter().filter(|contender| (contender.at)(case)) {
            let mut row = Row::new(contender.name, &case.to_string());
            row.error = contender.run.as_ref().err().map(|error| place.told(error));
            rows.push(row);
        }
    }
    for round in 0..rounds {
        for case in cases {
            let named = case.to_string();
            for n in 0..contenders.len() {
                let contender = &contenders[(n + round) % contenders.len()];
                let mut found = rows.iter_mut();
                let row = found.find(|row| row.peer == contender.name && row.case == named);
                let (Some(row), Ok(run)) = (row, &contender.run) else { continue };
                if row.error.is_some() {
                    continue;
                }
                before(case)?;
                match run(case) {
                    Ok(sample) => {
                        say_round(round + 1, row, sample);
                        row.add(sample);
                    }
                    Err(error) if children::stopped() => return Err(error),
                    Err(error) => {
                        row.error = Some(place.told(&error));
                        let told = row.error.as_deref().unwrap_or_default();
                        say(&format!("round {}  {named}  {}: {told}", round + 1, row.peer));
                    }
                }
            }
        }
    }
    Ok(rows)
}

fn say_round(round: usize, row: &Row, sample: Sample) {
    let cpu = sample.client_cpu + sample.server_cpu;
    say(&format!(
        "round {round}  {:<14} {:<36} {:>6.2} GB/s {cpu:>6.2} s/GB  p50 {:.3} ms",
        row.case, row.peer, sample.gb_per_second, sample.p50_ms
    ));
}

/// The first line that a program writes when it is asked for its version.
pub(crate) fn version(place: &Place, program: &Path, argument: &str) -> Result<String> {
    let mut command = children::on(&place.all, program);
    command.arg(argument);
    let log = place.log("version");
    let said = children::output(&mut command, &log, RUN)?;
    // nginx says it on the other channel.
    let said = if said.trim().is_empty() { std::fs::read_to_string(&log)? } else { said };
    said.lines().next().map(str::to_owned).context("it said nothing")
}
