//! `cargo xtask test`: the tests, with everything they need.

use std::collections::BTreeSet;

use anyhow::Result;

use crate::run::{cargo, run, run_reading};
use crate::{coverage, python, tools};

/// Sets the tools up, builds the two programs that the end-to-end tests run,
/// and runs every test. `extra` goes to `cargo test`; without any, the tests that
/// the specification's coverage names must have run, and the Python package's run
/// as well.
pub(crate) fn test(extra: &[String]) -> Result<()> {
    let tools = tools::setup()?;
    build()?;
    let test = ["test", "--workspace", "--no-fail-fast"];
    let mut command = cargo();
    command.args(test).args(extra).env("TPAD_TEST_TOOLS", tools);
    let mut passed = BTreeSet::new();
    run_reading(&mut command, |line| passed.extend(coverage::passed(line).map(str::to_owned)))?;
    if !extra.is_empty() {
        return Ok(());
    }
    coverage::check(&passed)?;
    python::tests(&[])
}

/// One build of everything: the programs with the same features as the tests,
/// so that nothing is compiled twice.
pub(crate) fn build() -> Result<()> {
    run(cargo().args(["build", "--workspace", "--lib", "--bins", "--tests"]))
}
