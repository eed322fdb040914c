//! The document's tables, between its markers.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::Which;
use crate::figures::{Part, Row, Spread, delays};

const BEGIN: &str = "<!-- cargo xtask bench: begin -->";
const END: &str = "<!-- cargo xtask bench: end -->";

/// Puts the parts between the markers of a document.
pub(crate) fn write(file: &Path, parts: &[(Which, Part)]) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let tables: Vec<String> = parts.iter().map(|(which, part)| of(*which, part)).collect();
    let text = between(&text, &tables.join("\n")).with_context(|| {
        format!("{} has no line {BEGIN} with a line {END} below", file.display())
    })?;
    std::fs::write(file, text).with_context(|| file.display().to_string())
}

fn between(text: &str, what: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{what}\n{END}{after}"))
}

/// One part as Markdown.
pub(crate) fn of(which: Which, part: &Part) -> String {
    let mut text = format!("### {}\n\n", title(which));
    // Writing to a String cannot fail.
    let (name, Part { machine, date, commit, rounds, .. }) = (which.name(), part);
    let _infallible = writeln!(
        text,
        "- Machine: {machine}. Date: {date}. Commit: {commit}.\n\
         - Command: `cargo xtask bench --only {name}`; {rounds} rounds, kept in \
         [peers-{name}.json](performance/peers-{name}.json).\n\
         - Versions: {}.\n",
        listed(part),
    );
    text.push_str(&match which {
        Which::Wire => wire(part),
        Which::Latency => latency(part),
        Which::Handoff => handoff(part),
        Which::Workers | Which::Cold | Which::S3 => single(part),
    });
    text
}

fn title(which: Which) -> &'static str {
    match which {
        Which::Wire => "Values in memory, over TCP",
        Which::Workers => "Values in memory, to many workers of grpcio",
        Which::Latency => "Small requests",
        Which::Handoff => "Blocks in place, on the daemon's node",
        Which::Cold => "Cold, from disk",
        Which::S3 => "Cold, from an S3 server",
    }
}

fn listed(part: &Part) -> String {
    let versions = part.versions.iter().map(|(name, version)| format!("{name} {version}"));
    versions.collect::<Vec<_>>().join(", ")
}

/// A table for each size: throughput and processor time by requests at a time.
fn wire(part: &Part) -> String {
    let cases = part.cases();
    let size = |case: &str| case.split(" x ").next().unwrap_or_default().to_owned();
    let mut sizes: Vec<String> = cases.iter().map(|case| size(case)).collect();
    sizes.dedup();
    let mut text = String::new();
    for name in sizes {
        let of_size: Vec<&str> = cases.iter().copied().filter(|case| size(case) == name).collect();
        let mut headings = vec![name.clone()];
        let at = |case: &&str| case.split(" x ").nth(1).unwrap_or_default().to_owned();
        headings.extend(of_size.iter().map(|case| format!("throughput, {} at a time", at(case))));
        headings.extend(of_size.iter().map(|case| format!("CPU, {} at a time", at(case))));
        let mut rows = Vec::new();
        for peer in part.peers() {
            let found: Vec<Option<&Row>> =
                of_size.iter().map(|case| part.row(peer, case)).collect();
            if found.iter().all(Option::is_none) {
                continue;
            }
            let mut cells = vec![peer.to_owned()];
            cells.extend(found.iter().map(|row| speed(part, *row)));
            cells.extend(found.iter().map(|row| cost(part, *row)));
            rows.push(cells);
        }
        text.push_str(&table(&headings, &rows));
        text.push('\n');
    }
    text
}

/// One table with one case.
fn single(part: &Part) -> String {
    let case = part.cases().first().copied().unwrap_or_default().to_owned();
    let headings = [&case, "GB/s", "of the limit", "CPU s/GB", "of the limit"];
    let headings: Vec<String> = headings.iter().map(|text| (*text).to_owned()).collect();
    let row = |peer: &&str| {
        let row = part.row(peer, &case)?;
        if let Some(error) = &row.error {
            let mut cells = vec![(*peer).to_owned(), escaped(error)];
            cells.resize(5, String::new());
            return Some(cells);
        }
        let ratio = |spread: Option<Spread>| spread.map_or_else(String::new, |s| shown(s, ""));
        let plain = |values: &[f64]| ratio(Spread::of(values));
        let (speed, cost) = (part.speed(row), part.cost(row));
        let cells = [plain(&row.gb_per_second), ratio(speed), plain(&row.cpu()), ratio(cost)];
        Some([vec![(*peer).to_owned()], cells.to_vec()].concat())
    };
    let rows: Vec<Vec<String>> = part.peers().iter().filter_map(row).collect();
    table(&headings, &rows)
}

/// Milliseconds, idle and loaded.
fn latency(part: &Part) -> String {
    let cases = part.cases();
    let mut headings = vec!["milliseconds".to_owned()];
    for case in &cases {
        headings.extend([format!("p50, {case}"), format!("p99, {case}")]);
    }
    headings.push("p50 idle, of the empty call's".to_owned());
    headings.push("p99 loaded, of its idle".to_owned());
    let mut rows = Vec::new();
    for peer in part.peers() {
        let mut cells = vec![peer.to_owned()];
        let mut medians = Vec::new();
        for case in &cases {
            let row = part.row(peer, case);
            if let Some(error) = row.and_then(|row| row.error.as_ref()) {
                cells.extend([escaped(error), String::new()]);
                continue;
            }
            for values in row.map(|row| [&row.p50_ms, &row.p99_ms]).into_iter().flatten() {
                let spread = Spread::of(values);
                medians.push(spread.map_or(0.0, |spread| spread.median));
                cells.push(spread.map_or_else(String::new, shown3));
            }
        }
        let limit = cases.first().and_then(|case| part.row(&part.limit, case));
        let limit = limit.and_then(|row| Spread::of(&row.p50_ms)).map(|spread| spread.median);
        let by = |value: Option<&f64>, by: Option<f64>| match (value, by) {
            (Some(value), Some(by)) if by > 0.0 => format!("{:.2}", value / by),
            _ => String::new(),
        };
        cells.push(by(medians.first(), limit));
        cells.push(by(medians.get(3), medians.get(1).copied()));
        rows.push(cells);
    }
    table(&headings, &rows)
}

/// Microseconds by size, and what they are of the empty call's and of the smallest size's.
fn handoff(part: &Part) -> String {
    let cases = part.cases();
    let smallest = cases.first().copied().unwrap_or_default();
    let own = format!("p50, of its own at {smallest}");
    let calls = ["p50, of the empty call's", "p99, of the empty call's"];
    let headings = ["microseconds", "p50", "p99", calls[0], calls[1], &own];
    let headings = headings.map(str::to_owned);
    let mut rows = Vec::new();
    for peer in part.peers() {
        for case in &cases {
            let Some(row) = part.row(peer, case) else { continue };
            let mut cells = vec![format!("{peer}, {case}")];
            if let Some(error) = &row.error {
                cells.push(escaped(error));
                cells.resize(headings.len(), String::new());
                rows.push(cells);
                continue;
            }
            let told = |spread: Option<Spread>, show: fn(Spread) -> String| {
                spread.map_or_else(String::new, show)
            };
            cells.push(told(Spread::of(&row.p50_ms), micros));
            cells.push(told(Spread::of(&row.p99_ms), micros));
            let of = |of: Option<&Row>| of.map_or([None; 2], |of| delays(row, of));
            let [p50, p99] = of(part.row(&part.limit, case));
            let [own, _] = of(part.row(peer, smallest));
            cells.extend([p50, p99, own].map(|ratio| told(ratio, |it| shown(it, ""))));
            rows.push(cells);
        }
    }
    table(&headings, &rows)
}

/// A ratio with its spread; of the limit itself, what it was.
fn speed(part: &Part, row: Option<&Row>) -> String {
    let Some(row) = row else { return String::new() };
    match &row.error {
        Some(error) => escaped(error),
        None if row.peer == part.limit => {
            Spread::of(&row.gb_per_second).map_or_else(String::new, |s| shown(s, " GB/s"))
        }
        None => part.speed(row).map_or_else(String::new, |s| shown(s, "")),
    }
}

fn cost(part: &Part, row: Option<&Row>) -> String {
    let Some(row) = row.filter(|row| row.error.is_none()) else { return String::new() };
    if row.peer == part.limit {
        return Spread::of(&row.cpu()).map_or_else(String::new, |s| shown(s, " s/GB"));
    }
    part.cost(row).map_or_else(String::new, |s| shown(s, ""))
}

fn shown(spread: Spread, unit: &str) -> String {
    let Spread { median, least, most } = spread;
    format!("{median:.2}{unit} ({least:.2} to {most:.2})")
}

fn shown3(spread: Spread) -> String {
    let Spread { median, least, most } = spread;
    format!("{median:.3} ({least:.3} to {most:.3})")
}

/// Milliseconds as microseconds, small ones to the nanosecond.
fn micros(spread: Spread) -> String {
    let Spread { median, least, most } = spread;
    let digits = if median < 0.01 { 3 } else { 1 };
    let [median, least, most] = [median, least, most].map(|ms| ms * 1e3);
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}

fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

fn table(headings: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(headings);
    text.push_str(&format!("|{}\n", "---|".repeat(headings.len())));
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Sample;

    fn part() -> Part {
        let mut rows = Vec::new();
        for (peer, speed) in [("limit", 4.0), ("peer", 1.0)] {
            let mut row = Row::new(peer, "1 MiB x 4");
            row.add(Sample { gb_per_second: speed, client_cpu: 0.5, ..Sample::default() });
            rows.push(row);
        }
        let mut absent = Row::new("absent", "1 MiB x 4");
        absent.error = Some("not installed: apt-get install a|b".to_owned());
        rows.push(absent);
        Part { limit: "limit".to_owned(), rounds: 1, rows, ..Part::default() }
    }

    #[test]
    fn a_peer_that_could_not_run_stays_with_its_error() {
        for which in [Which::Wire, Which::Cold] {
            let text = of(which, &part());
            let line = text.lines().find(|line| line.starts_with("| absent")).expect("it stays");
            assert!(line.contains("not installed: apt-get install a\\|b"), "{line}");
        }
    }

    #[test]
    fn rows_have_as_many_cells_as_headings() {
        for which in [Which::Wire, Which::Cold, Which::Latency, Which::Handoff] {
            let text = of(which, &part());
            let cells = |line: &str| line.replace("\\|", "").matches('|').count();
            let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
            assert!(lines.len() == 5, "{text}");
            assert!(lines.iter().all(|line| cells(line) == cells(lines[0])), "{text}");
        }
    }

    #[test]
    fn ratios_are_of_the_limit_and_the_limit_is_absolute() {
        let text = of(Which::Wire, &part());
        assert!(text.contains("| limit | 4.00 GB/s (4.00 to 4.00) | 0.50 s/GB"), "{text}");
        assert!(text.contains("| peer | 0.25 (0.25 to 0.25) | 1.00"), "{text}");
    }

    #[test]
    fn blocks_in_place_are_held_against_the_call_and_against_the_smallest() {
        let mut rows = Vec::new();
        for (peer, sizes) in [("call", [0.1, 0.1]), ("held", [0.12, 0.11]), ("near", [5e-5; 2])] {
            for (case, p50_ms) in ["1 MiB", "128 MiB"].into_iter().zip(sizes) {
                let mut row = Row::new(peer, case);
                row.add(Sample { p50_ms, p99_ms: 0.2, ..Sample::default() });
                rows.push(row);
            }
        }
        let part = Part { limit: "call".to_owned(), rounds: 1, rows, ..Part::default() };
        let text = of(Which::Handoff, &part);
        let line = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(&format!("| {name} |")));
            line.expect("a row").split(" | ").collect::<Vec<_>>()
        };
        let ratio = |number: &str| format!("{number} ({number} to {number})");
        let held = line("held, 128 MiB");
        assert_eq!(held[1], ratio("110.0"));
        assert_eq!((held[3], held[4]), (&*ratio("1.10"), &*ratio("1.00")));
        assert_eq!(held[5].trim_end_matches(" |"), ratio("0.92"));
        assert_eq!(line("near, 1 MiB")[1], ratio("0.050"));
    }

    #[test]
    fn only_what_lies_between_the_markers_changes() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let changed = between(&text, "new").expect("both markers are there");
        assert_eq!(changed, format!("a\n{BEGIN}\n\nnew\n{END}\nb\n"));
        assert_eq!(between("a\nb\n", "new"), None);
    }
}
