//! From the file as written to a [`Config`]: defaults filled in, every value judged.

mod handoff;
mod levels;
mod limits;
mod listen;
mod models;
mod values;

use std::time::Duration;

use self::values::{duration, hours};
use super::{BudgetEnforcement, Config, Problem, ReadyWhen, Surroundings, mirror};

pub(super) use self::values::size;

/// Collects problems; every check hands back a value so that all the others still run.
pub(super) struct Problems(Vec<Problem>);

impl Problems {
    pub(super) fn add(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { key: key.into(), message: message.into() });
    }
}

pub(super) fn resolve(
    file: mirror::File,
    surroundings: &Surroundings,
) -> Result<Config, Vec<Problem>> {
    let mirror::File {
        allow_plaintext,
        budget_enforcement,
        ready_when,
        follow_interval,
        swap_patience,
        listen,
        handoff,
        models,
        fetch,
        levels: mirror::Levels { hbm, dram, nvme },
        log,
        deadlines,
        drain: mirror::Drain { deadline: drain_deadline },
        limits,
    } = file;
    let mut problems = Problems(Vec::new());
    let mut warnings = Vec::new();

    let listen =
        listen::listen(listen, allow_plaintext.unwrap_or(false), surroundings, &mut problems);
    let models = models::models(models, surroundings, &mut problems);
    let fetch = levels::fetch(fetch, &mut problems);
    let dram = levels::dram(dram, surroundings, &mut problems, &mut warnings);
    let hbm = super::hbm::resolve(hbm, &mut problems);
    let nvme = super::nvme::resolve(nvme, surroundings, &mut problems);
    let handoff =
        handoff::handoff(handoff, &listen, dram.capacity_bytes, &mut problems, &mut warnings);
    let budget_enforcement = match budget_enforcement.as_deref().unwrap_or("warn") {
        "warn" => BudgetEnforcement::Warn,
        "reject" => BudgetEnforcement::Reject,
        other => {
            problems
                .add("budget_enforcement", format!("{other:?} is neither \"warn\" nor \"reject\""));
            BudgetEnforcement::Warn
        }
    };
    let ready_when = match ready_when.as_deref().unwrap_or("loaded") {
        "loaded" => ReadyWhen::Loaded,
        "warm" => ReadyWhen::Warm,
        other => {
            problems.add("ready_when", format!("{other:?} is neither \"loaded\" nor \"warm\""));
            ReadyWhen::Loaded
        }
    };
    let follow_interval = duration(
        "follow_interval",
        follow_interval,
        Duration::from_secs(30),
        Duration::ZERO..=hours(24),
        &mut problems,
    );
    let swap_patience = duration(
        "swap_patience",
        swap_patience,
        Duration::from_secs(600),
        Duration::ZERO..=hours(24),
        &mut problems,
    );
    let log = levels::log(log, &mut problems);
    let deadlines = limits::deadlines(deadlines, &mut problems);
    let drain_deadline = duration(
        "drain.deadline",
        drain_deadline,
        Duration::from_secs(30),
        Duration::ZERO..=hours(24),
        &mut problems,
    );
    let limits = limits::limits(limits, &mut problems);

    if problems.0.is_empty() {
        Ok(Config {
            listen,
            models,
            origin: surroundings.origin.clone(),
            fetch,
            handoff,
            hbm,
            dram,
            nvme,
            budget_enforcement,
            ready_when,
            follow_interval: Some(follow_interval).filter(|interval| !interval.is_zero()),
            swap_patience,
            log,
            limits,
            deadlines,
            drain_deadline,
            warnings,
        })
    } else {
        Err(problems.0)
    }
}
