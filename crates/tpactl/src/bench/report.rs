//! What a benchmark prints.

use std::collections::BTreeMap;

use serde::Serialize;

use super::LoadArgs;
use super::drive::{Measured, Tally};
use super::meter::{Process, Reads, Used};
use crate::failure::Failure;
use crate::output::{Output, human_bytes, printable};

/// The percentiles that are told.
const PERCENTILES: [f64; 6] = [50.0, 90.0, 95.0, 99.0, 99.9, 99.99];

const GB: f64 = 1e9;

/// A run of `fetch` or `mask`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    benchmark: String,
    model: String,
    /// `closed`, or `open` with requests that were due at fixed times.
    pub(super) r#loop: &'static str,
    concurrency: u32,
    connections: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overdue: Option<u64>,
    #[serde(flatten)]
    throughput: Throughput,
    /// Of answered requests: from when they were due in an open loop, else from
    /// when they were sent.
    pub(super) latency_ms: Latency,
    #[serde(skip)]
    pub(super) curve: Vec<(f64, f64)>,
    #[serde(flatten)]
    cost: Cost,
    errors: BTreeMap<&'static str, u64>,
}

/// A run of `cold`.
#[derive(Debug, Serialize)]
pub(super) struct ColdReport {
    benchmark: &'static str,
    model: String,
    tier: String,
    concurrency: u32,
    rounds: Vec<Round>,
}

/// One time that a tier was read.
#[derive(Debug, Serialize)]
pub(super) struct Round {
    round: u32,
    #[serde(flatten)]
    throughput: Throughput,
    #[serde(flatten)]
    cost: Cost,
    errors: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Throughput {
    seconds: f64,
    requests: u64,
    requests_per_second: f64,
    blocks: u64,
    bytes: u64,
    gb_per_second: f64,
}

/// Milliseconds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    mean: f64,
    min: f64,
    max: f64,
    /// By name: `p50`, `p99.9`.
    percentiles: BTreeMap<String, f64>,
}

/// What it took; absent where nobody counts.
#[derive(Clone, Copy, Debug, Serialize)]
struct Cost {
    client: Option<Side>,
    daemon: Option<Side>,
    /// Where the daemon found the blocks, as it counts.
    reads: Reads,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Side {
    cpu_seconds: f64,
    /// Absent where no bytes were moved.
    cpu_seconds_per_gb: Option<f64>,
    minor_faults: u64,
    minor_faults_per_gb: Option<f64>,
}

impl Report {
    /// Fails when no request was answered.
    pub(super) fn of(
        name: &str,
        args: &LoadArgs,
        connections: u32,
        measured: Measured,
    ) -> Result<Self, Failure> {
        let Measured { tally, seconds, overdue, used } = measured;
        let throughput = Throughput::of(&tally, seconds);
        if let Some((_, error)) = tally.errors.values().next().filter(|_| tally.requests == 0) {
            return Err(Failure::of_call(error));
        }
        Ok(Self {
            benchmark: name.to_owned(),
            model: args.model.clone(),
            r#loop: if args.rate.is_some() { "open" } else { "closed" },
            concurrency: args.concurrency,
            connections,
            rate: args.rate,
            overdue: args.rate.map(|_| overdue),
            throughput,
            latency_ms: Latency::of(&tally),
            curve: curve(&tally),
            cost: Cost::of(&used, tally.bytes),
            errors: errors(&tally),
        })
    }

    /// What was measured, in a line.
    pub(super) fn title(&self) -> String {
        let Self { benchmark, model, concurrency, connections, .. } = self;
        format!(
            "{} of {}: {} loop, {concurrency} at a time over {connections} connections",
            printable(benchmark),
            printable(model),
            self.r#loop,
        )
    }

    pub(super) fn text(&self, output: &Output) -> String {
        let mut lines = vec![self.title()];
        if let (Some(rate), Some(overdue)) = (self.rate, self.overdue) {
            lines.push(format!("{rate} requests due in a second, {overdue} were never begun"));
        }
        lines.push(self.throughput.text());
        let mut row = vec![ms(self.latency_ms.mean), ms(self.latency_ms.min)];
        row.extend(PERCENTILES.map(|p| ms(self.latency_ms.percentiles[&name(p)])));
        row.push(ms(self.latency_ms.max));
        let names = PERCENTILES.map(name);
        let mut headings = vec!["LATENCY MS, MEAN", "MIN"];
        headings.extend(names.iter().map(String::as_str));
        headings.push("MAX");
        lines.extend([String::new(), output.table(&headings, &[row]), String::new()]);
        lines.extend(self.cost.text());
        for (kind, count) in &self.errors {
            lines.push(format!("failed: {count} requests, {kind}"));
        }
        lines.join("\n")
    }
}

impl ColdReport {
    pub(super) fn of(model: String, tier: String, concurrency: u32, rounds: Vec<Round>) -> Self {
        Self { benchmark: "cold", model, tier, concurrency, rounds }
    }

    pub(super) fn text(&self, output: &Output) -> String {
        let number =
            |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
        let row = |round: &Round| {
            let per_gb = |side: Option<Side>| number(side.and_then(|side| side.cpu_seconds_per_gb));
            let Reads { nvme, object_store, .. } = round.cost.reads;
            vec![
                round.round.to_string(),
                round.throughput.blocks.to_string(),
                human_bytes(round.throughput.bytes),
                format!("{:.3}", round.throughput.seconds),
                format!("{:.3}", round.throughput.gb_per_second),
                nvme.to_string(),
                object_store.to_string(),
                per_gb(round.cost.daemon),
                per_gb(round.cost.client),
                round.errors.values().sum::<u64>().to_string(),
            ]
        };
        let headings = [
            "ROUND",
            "BLOCKS",
            "SIZE",
            "SECONDS",
            "GB/S",
            "FROM NVME",
            "FROM STORE",
            "DAEMON CPU S/GB",
            "CLIENT CPU S/GB",
            "FAILED",
        ];
        let rows: Vec<Vec<String>> = self.rounds.iter().map(row).collect();
        let (model, tier) = (printable(&self.model), printable(&self.tier));
        let title = format!("cold reads of tier {tier} of {model}, {} at a time", self.concurrency);
        format!("{title}\n{}", output.table(&headings, &rows))
    }
}

impl Round {
    pub(super) fn of(round: u32, measured: Measured) -> Self {
        let Measured { tally, seconds, used, .. } = measured;
        let throughput = Throughput::of(&tally, seconds);
        Self { round, throughput, cost: Cost::of(&used, tally.bytes), errors: errors(&tally) }
    }
}

fn errors(tally: &Tally) -> BTreeMap<&'static str, u64> {
    tally.errors.iter().map(|(kind, (count, _))| (*kind, *count)).collect()
}

impl Throughput {
    #[expect(clippy::cast_precision_loss, reason = "rates are rounded anyway")]
    fn of(tally: &Tally, seconds: f64) -> Self {
        let per_second = |count: u64| count as f64 / seconds.max(1e-9);
        Self {
            seconds,
            requests: tally.requests,
            requests_per_second: per_second(tally.requests),
            blocks: tally.blocks,
            bytes: tally.bytes,
            gb_per_second: per_second(tally.bytes) / GB,
        }
    }

    fn text(&self) -> String {
        let Self { seconds, requests, requests_per_second, bytes, gb_per_second, .. } = self;
        let bytes = human_bytes(*bytes);
        format!(
            "{requests} requests in {seconds:.2} s: {requests_per_second:.1}/s, \
             {gb_per_second:.3} GB/s ({bytes})"
        )
    }
}

impl Latency {
    fn of(tally: &Tally) -> Self {
        let all = &tally.latency;
        let at = |percentile: f64| in_ms(all.value_at_percentile(percentile));
        Self {
            mean: all.mean() / 1e6,
            min: in_ms(if all.is_empty() { 0 } else { all.min() }),
            max: in_ms(all.max()),
            percentiles: PERCENTILES.iter().map(|p| (name(*p), at(*p))).collect(),
        }
    }
}

/// Latency at percentiles that come ever closer to all.
fn curve(tally: &Tally) -> Vec<(f64, f64)> {
    let all = &tally.latency;
    let points = all
        .iter_quantiles(5)
        .map(|value| (value.quantile_iterated_to() * 100.0, in_ms(value.value_iterated_to())));
    points.collect()
}

impl Cost {
    fn of(used: &Used, bytes: u64) -> Self {
        let side = |process: Option<Process>| process.map(|process| Side::of(&process, bytes));
        Self { client: side(used.client), daemon: side(used.daemon), reads: used.reads }
    }

    fn text(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (who, side) in [("client", self.client), ("daemon", self.daemon)] {
            let Some(side) = side else { continue };
            let per_gb = match (side.cpu_seconds_per_gb, side.minor_faults_per_gb) {
                (Some(cpu), Some(faults)) => {
                    format!(", {cpu:.3} s and {faults:.0} page faults for each GB")
                }
                _ => String::new(),
            };
            lines.push(format!("{who}  {:.2} s of processor time{per_gb}", side.cpu_seconds));
        }
        let Reads { hbm, dram, nvme, object_store } = self.reads;
        let sum = self.reads.sum();
        if sum > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            let part = |count: u64| format!("{:.1} %", count as f64 * 100.0 / sum as f64);
            lines.push(format!(
                "found   hbm {}, dram {}, nvme {}, object store {} of {sum} blocks",
                part(hbm),
                part(dram),
                part(nvme),
                part(object_store)
            ));
        }
        lines
    }
}

impl Side {
    #[expect(clippy::cast_precision_loss, reason = "rates are rounded anyway")]
    fn of(process: &Process, bytes: u64) -> Self {
        let gb = (bytes > 0).then(|| bytes as f64 / GB);
        Self {
            cpu_seconds: process.cpu_seconds(),
            cpu_seconds_per_gb: gb.map(|gb| process.cpu_seconds() / gb),
            minor_faults: process.minor_faults(),
            minor_faults_per_gb: gb.map(|gb| process.minor_faults() as f64 / gb),
        }
    }
}

fn name(percentile: f64) -> String {
    format!("p{percentile}")
}

fn ms(value: f64) -> String {
    format!("{value:.3}")
}

#[expect(clippy::cast_precision_loss, reason = "latencies are rounded anyway")]
fn in_ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}
