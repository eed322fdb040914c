//! `docs/spec-coverage.md` against the code and the tests: what it names exists,
//! and ran.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};

use crate::run::root;

/// The page.
pub(crate) const PAGE: &str = "docs/spec-coverage.md";

/// A row of a table: a rule, where it is kept, and what shows it.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    line: usize,
    code: Vec<String>,
    tests: Vec<String>,
}

/// Refuses a page whose code does not exist, or whose tests are not among those
/// that `passed`.
pub(crate) fn check(passed: &BTreeSet<String>) -> Result<()> {
    let text = std::fs::read_to_string(root().join(PAGE)).with_context(|| PAGE.to_owned())?;
    let rows = rows(&text);
    if rows.is_empty() {
        bail!("{PAGE} has no table");
    }
    let exists = |path: &str| root().join(path).exists();
    let wrong: Vec<String> = rows.iter().flat_map(|row| row.problems(&exists, passed)).collect();
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// The name of the test that a line of a test program's output says has passed.
pub(crate) fn passed(line: &str) -> Option<&str> {
    let path = line.strip_prefix("test ")?.strip_suffix(" ... ok")?;
    path.rsplit("::").next()
}

/// The rows of all tables with three columns: rule, code, tests.
fn rows(text: &str) -> Vec<Row> {
    let mut rows = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let cells: Vec<&str> = text.trim().trim_matches('|').split('|').map(str::trim).collect();
        let [rule, code, tests] = cells[..] else { continue };
        let heads = rule == "rule" || rule.chars().all(|c| matches!(c, '-' | ':'));
        if text.trim().starts_with('|') && !heads {
            rows.push(Row { line, code: quoted(code), tests: quoted(tests) });
        }
    }
    rows
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

impl Row {
    fn problems(&self, exists: &impl Fn(&str) -> bool, passed: &BTreeSet<String>) -> Vec<String> {
        let place = format!("{PAGE}:{}", self.line);
        let mut wrong = Vec::new();
        if self.code.is_empty() || self.tests.is_empty() {
            wrong.push(format!("{place}: a rule needs code and a test"));
        }
        let missing = self.code.iter().filter(|path| !exists(path));
        wrong.extend(missing.map(|path| format!("{place}: {path} does not exist")));
        let absent = self.tests.iter().filter(|test| !passed.contains(*test));
        wrong.extend(absent.map(|test| format!("{place}: no test {test} has run and passed")));
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# Title | with | bars
| rule | code | tests |
|---|---|---|
| one | `a.rs`, `b` | `first`, `second` |
| two | | |
";

    #[test]
    fn rows_name_code_and_tests() {
        let row = |line, code: &[&str], tests: &[&str]| {
            let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            Row { line, code: own(code), tests: own(tests) }
        };
        assert_eq!(rows(TEXT), [row(4, &["a.rs", "b"], &["first", "second"]), row(5, &[], &[])]);
    }

    #[test]
    fn what_is_missing_is_named_with_its_line() {
        let passed = BTreeSet::from(["first".to_owned()]);
        let exists = |path: &str| path == "b";
        let wrong: Vec<String> =
            rows(TEXT).iter().flat_map(|row| row.problems(&exists, &passed)).collect();
        let place = |line| format!("{PAGE}:{line}: ");
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert_eq!(wrong[0], place(4) + "a.rs does not exist");
        assert_eq!(wrong[1], place(4) + "no test second has run and passed");
        assert!(wrong[2].starts_with(&place(5)), "{wrong:?}");
    }

    #[test]
    fn only_tests_that_passed_count() {
        assert_eq!(passed("test a::b::name ... ok"), Some("name"));
        assert_eq!(passed("test name ... ok"), Some("name"));
        for line in ["test a::name ... FAILED", "test a::name ... ignored", "ok", ""] {
            assert_eq!(passed(line), None, "{line}");
        }
    }
}
