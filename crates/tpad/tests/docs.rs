//! docs/ against the code: every reason of an error and every metric is described, and no other.

use std::collections::BTreeSet;

const ERRORS: &str = include_str!("../../../docs/errors.md");
const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// Where reasons are spelled.
const REASONS: [&str; 7] = [
    include_str!("../../tpad-engine/src/error.rs"),
    include_str!("../src/grpc/status.rs"),
    include_str!("../src/edge/refusal.rs"),
    include_str!("../src/handoff/answer.rs"),
    include_str!("../src/handoff/connection.rs"),
    include_str!("../src/handoff/connection/end.rs"),
    include_str!("../src/handoff/connection/hello.rs"),
];

/// Where metrics are named.
const METRICS: [&str; 6] = [
    include_str!("../src/daemon.rs"),
    include_str!("../src/edge/metrics.rs"),
    include_str!("../src/handoff/metrics.rs"),
    include_str!("../../tpad-engine/src/metrics.rs"),
    include_str!("../../tpad-hbm/src/metrics.rs"),
    include_str!("../../tpad-store/src/metrics.rs"),
];

/// The pieces of `text` between two of `quote` that consist of `letters` alone, tests left out.
fn quoted(text: &str, quote: char, letters: impl Fn(char) -> bool) -> BTreeSet<&str> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().flat_map(|line| line.split(quote).skip(1).step_by(2));
    lines.filter(|piece| piece.len() > 3 && piece.chars().all(&letters)).collect()
}

fn constant(letter: char) -> bool {
    letter.is_ascii_uppercase() || letter == '_'
}

fn name(letter: char) -> bool {
    letter.is_ascii_lowercase() || letter == '_'
}

#[test]
fn every_reason_is_described_and_no_other() {
    let codes: BTreeSet<&str> = ERRORS
        .lines()
        .skip_while(|line| !line.starts_with("## What a code means"))
        .take_while(|line| !line.starts_with("## Reasons"))
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    let reasons: BTreeSet<&str> = ERRORS
        .lines()
        .skip_while(|line| !line.starts_with("## Reasons"))
        .take_while(|line| !line.starts_with("## Reads"))
        .filter_map(|line| line.strip_prefix("| ")?.split('|').next())
        .flat_map(|cell| quoted(cell, '`', constant))
        .collect();
    let spelled: BTreeSet<&str> =
        REASONS.iter().flat_map(|text| quoted(text, '"', constant)).collect();
    assert!(spelled.len() > 25, "the sources are read: {spelled:?}");
    assert_eq!(reasons, &spelled - &BTreeSet::from(["REASON"]));
    assert_eq!(codes.len(), 10, "one row for each code: {codes:?}");
}

#[test]
fn every_metric_is_described_and_no_other() {
    let bare = |name: &str| name.strip_suffix("_total").unwrap_or(name).to_owned();
    let described: BTreeSet<String> = OPERATIONS
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split('|').next())
        .flat_map(|cell| quoted(cell, '`', name))
        .filter(|piece| piece.starts_with("tpad_"))
        .map(bare)
        .collect();
    let named: BTreeSet<String> = METRICS
        .iter()
        .flat_map(|text| quoted(text, '"', name))
        .filter(|piece| piece.starts_with("tpad_"))
        .map(|name| if name == "tpad_build" { "tpad_build_info".to_owned() } else { bare(name) })
        .collect();
    assert!(named.len() > 20, "the sources are read: {named:?}");
    assert_eq!(described, named);
}
