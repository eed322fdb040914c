//! What was measured: rounds as they were, medians and ratios beside them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const GB: f64 = 1e9;

/// One run of one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    pub(crate) gb_per_second: f64,
    /// Processor seconds for each GB.
    pub(crate) client_cpu: f64,
    pub(crate) server_cpu: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

/// All rounds of one peer at one case.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Row {
    pub(crate) peer: String,
    /// Such as `16 MiB x 4`.
    pub(crate) case: String,
    pub(crate) gb_per_second: Vec<f64>,
    /// The clients' and the servers' processor seconds for each GB.
    pub(crate) client_cpu_seconds_per_gb: Vec<f64>,
    pub(crate) server_cpu_seconds_per_gb: Vec<f64>,
    pub(crate) p50_ms: Vec<f64>,
    pub(crate) p99_ms: Vec<f64>,
    /// Why there are no figures; a peer that failed once has none.
    pub(crate) error: Option<String>,
}

/// One part of the comparison, as it is kept.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Part {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) machine: String,
    /// Names and versions of what ran.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) rounds: usize,
    /// Whose figures the ratios divide by.
    pub(crate) limit: String,
    pub(crate) rows: Vec<Row>,
}

/// A median with its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Sample {
    /// What `peer-load` and the clients in Python print last; libraries talk before.
    pub(crate) fn of_outcome(text: &str) -> Result<Self> {
        let answer = text.lines().rev().find(|line| line.starts_with('{'));
        let answer = answer.context("the client printed no figures")?;
        let value: Value = serde_json::from_str(answer).context("the client's answer")?;
        let number = |key: &str| value[key].as_f64().with_context(|| format!("no {key}"));
        let (bytes, seconds) = (number("bytes")?, number("seconds")?);
        let requests = value["requests"].as_f64();
        ensure!(requests.is_none_or(|requests| requests > 0.0), "no request was answered");
        let gb = bytes / GB;
        let per_gb = |seconds: f64| if gb > 0.0 { seconds / gb } else { 0.0 };
        Ok(Self {
            gb_per_second: gb / seconds,
            client_cpu: per_gb(number("client_cpu_seconds")?),
            server_cpu: per_gb(number("server_cpu_seconds")?),
            p50_ms: number("p50_ms")?,
            p99_ms: number("p99_ms")?,
        })
    }

    /// What `tpactl bench --json` prints: `fetch`, `mask`, or one round of `cold`.
    pub(crate) fn of_tpactl(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text.trim()).context("tpactl's answer")?;
        let run = value.get("rounds").map_or(&value, |rounds| &rounds[0]);
        let failed = run["errors"].as_object().is_some_and(|errors| !errors.is_empty());
        if failed {
            bail!("requests failed: {}", run["errors"]);
        }
        ensure!(run["requests"].as_f64() > Some(0.0), "no request was answered");
        let cpu = |side: &str| run[side]["cpu_seconds_per_gb"].as_f64().unwrap_or_default();
        let latency = &run["latency_ms"]["percentiles"];
        let at = |percentile: &str| latency[percentile].as_f64().unwrap_or_default();
        Ok(Self {
            gb_per_second: run["gb_per_second"].as_f64().context("no gb_per_second")?,
            client_cpu: cpu("client"),
            server_cpu: cpu("daemon"),
            p50_ms: at("p50"),
            p99_ms: at("p99"),
        })
    }
}

impl Row {
    pub(crate) fn new(peer: &str, case: &str) -> Self {
        Self { peer: peer.to_owned(), case: case.to_owned(), ..Self::default() }
    }

    pub(crate) fn add(&mut self, sample: Sample) {
        let short = |value: f64| (value * 1e5).round() / 1e5;
        self.gb_per_second.push(short(sample.gb_per_second));
        self.client_cpu_seconds_per_gb.push(short(sample.client_cpu));
        self.server_cpu_seconds_per_gb.push(short(sample.server_cpu));
        // To the nanosecond: what is used in place takes few of them.
        let exact = |value: f64| (value * 1e6).round() / 1e6;
        self.p50_ms.push(exact(sample.p50_ms));
        self.p99_ms.push(exact(sample.p99_ms));
    }

    /// Both sides' processor seconds for each GB, by round.
    pub(crate) fn cpu(&self) -> Vec<f64> {
        let sides = self.client_cpu_seconds_per_gb.iter().zip(&self.server_cpu_seconds_per_gb);
        sides.map(|(client, server)| client + server).collect()
    }
}

impl Part {
    pub(crate) fn row(&self, peer: &str, case: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.peer == peer && row.case == case)
    }

    /// The cases in the order in which they were first run.
    pub(crate) fn cases(&self) -> Vec<&str> {
        distinct(self.rows.iter().map(|row| row.case.as_str()))
    }

    /// The peers in the order in which they were first run.
    pub(crate) fn peers(&self) -> Vec<&str> {
        distinct(self.rows.iter().map(|row| row.peer.as_str()))
    }

    /// A peer's throughput by that of the limit in the same round.
    pub(crate) fn speed(&self, row: &Row) -> Option<Spread> {
        let limit = self.row(&self.limit, &row.case)?;
        ratios(&row.gb_per_second, &limit.gb_per_second)
    }

    /// A peer's processor time for each GB by that of the limit in the same round.
    pub(crate) fn cost(&self, row: &Row) -> Option<Spread> {
        ratios(&row.cpu(), &self.row(&self.limit, &row.case)?.cpu())
    }
}

/// Latencies by those of another row in the same round: the median's, and the 99th
/// percentile's.
pub(crate) fn delays(row: &Row, of: &Row) -> [Option<Spread>; 2] {
    [ratios(&row.p50_ms, &of.p50_ms), ratios(&row.p99_ms, &of.p99_ms)]
}

impl Spread {
    /// `None` of no values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, least, most })
    }
}

/// A part as it is kept: a row a line, so that a difference can be read.
pub(crate) fn json(part: &Part) -> Result<String> {
    let head = Part { rows: Vec::new(), ..part.clone() };
    let head = serde_json::to_string_pretty(&head)?;
    let rows: Result<Vec<String>, _> = part.rows.iter().map(serde_json::to_string).collect();
    let rows = rows?.join(",\n    ");
    Ok(head.replace("\"rows\": []", &format!("\"rows\": [\n    {rows}\n  ]")) + "\n")
}

fn ratios(values: &[f64], limits: &[f64]) -> Option<Spread> {
    // A round that one of the two lacks has no ratio, and then the lists differ.
    if values.len() != limits.len() {
        return None;
    }
    let ratios: Vec<f64> =
        values.iter().zip(limits).filter(|(_, l)| **l > 0.0).map(|(v, l)| v / l).collect();
    Spread::of(&ratios)
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(peer: &str, speeds: &[f64], cpu: f64) -> Row {
        let mut row = Row::new(peer, "c");
        for speed in speeds {
            let sample = Sample {
                gb_per_second: *speed,
                client_cpu: cpu,
                server_cpu: cpu,
                ..Sample::default()
            };
            row.add(sample);
        }
        row
    }

    #[test]
    fn ratios_are_taken_within_a_round_and_then_the_median() {
        let rows = vec![row("limit", &[1.0, 2.0, 4.0], 0.1), row("p", &[0.5, 1.8, 2.0], 0.2)];
        let part = Part { limit: "limit".to_owned(), rows, ..Part::default() };
        let peer = part.row("p", "c").expect("it ran");
        let speed = part.speed(peer).expect("both ran");
        assert_eq!(speed, Spread { median: 0.5, least: 0.5, most: 0.9 });
        let cost = part.cost(peer).expect("both ran");
        assert!((cost.median - 2.0).abs() < 1e-9);
    }

    #[test]
    fn delays_are_of_the_same_round_and_known_to_the_nanosecond() {
        let [mut slow, mut fast] = ["slow", "fast"].map(|peer| Row::new(peer, "c"));
        for (n, factor) in [(1.0, 3.0), (2.0, 4.0), (3.0, 5.0)] {
            let fast_ms = n * 17e-6;
            fast.add(Sample { p50_ms: fast_ms, p99_ms: 1.0, ..Sample::default() });
            slow.add(Sample { p50_ms: fast_ms * factor, p99_ms: 2.0, ..Sample::default() });
        }
        let [p50, p99] = delays(&slow, &fast).map(|spread| spread.expect("both ran"));
        for (found, expected) in [(p50.least, 3.0), (p50.median, 4.0), (p99.median, 2.0)] {
            assert!((found - expected).abs() < 1e-9, "{found} in place of {expected}");
        }
    }

    #[test]
    fn rounds_that_do_not_pair_up_have_no_ratio() {
        let rows = vec![row("limit", &[1.0, 2.0], 0.1), row("p", &[0.5], 0.2)];
        let part = Part { limit: "limit".to_owned(), rows, ..Part::default() };
        assert_eq!(part.speed(&part.rows[1]), None);
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[2.0, 1.0]).map(|s| s.median), Some(1.5));
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let rows = vec![row("limit", &[1.0, 2.0], 0.1), row("p", &[0.5], 0.2)];
        let part = Part { limit: "limit".to_owned(), rounds: 2, rows, ..Part::default() };
        let text = json(&part).expect("it can be written");
        assert_eq!(text.lines().filter(|line| line.contains("\"peer\"")).count(), 2);
        let read: Part = serde_json::from_str(&text).expect("it is JSON");
        assert_eq!((read.rounds, read.rows.len()), (2, 2));
        assert_eq!(read.rows[0].gb_per_second, [1.0, 2.0]);
    }

    #[test]
    fn failed_requests_are_no_figure() {
        let good = r#"{"requests": 7, "gb_per_second": 2.0, "errors": {}, "client": {"cpu_seconds_per_gb": 0.1},
            "daemon": {"cpu_seconds_per_gb": 0.2}, "latency_ms": {"percentiles": {"p50": 1.0}}}"#;
        let sample = Sample::of_tpactl(good).expect("it is whole");
        assert_eq!((sample.gb_per_second, sample.server_cpu, sample.p50_ms), (2.0, 0.2, 1.0));
        let bad = good.replace("{}", r#"{"unavailable": 3}"#);
        assert!(Sample::of_tpactl(&bad).is_err());
        let none = good.replace("7", "0");
        assert!(Sample::of_tpactl(&none).is_err(), "nothing was answered");
        let round = format!(r#"{{"rounds": [{good}]}}"#);
        assert_eq!(Sample::of_tpactl(&round).expect("a round").gb_per_second, 2.0);
    }

    #[test]
    fn a_client_that_counts_no_bytes_has_no_cost() {
        let text = concat!(
            "some library says hello\n",
            r#"{"requests": 9, "bytes": 0, "seconds": 1.0, "client_cpu_seconds": 0.5, "#,
            r#""server_cpu_seconds": 0.5, "p50_ms": 0.2, "p99_ms": 0.3}"#,
        );
        let sample = Sample::of_outcome(text).expect("it is whole");
        assert_eq!((sample.client_cpu, sample.p99_ms), (0.0, 0.3));
    }
}
