//! `cargo xtask test`: the tests, with everything they need.

use anyhow::Result;

use crate::run::{cargo, run};
use crate::tools;

/// Sets the tools up, builds the two programs that the end-to-end tests run,
/// and runs every test. `extra` goes to `cargo test`.
pub(crate) fn test(extra: &[String]) -> Result<()> {
    let tools = tools::setup()?;
    build()?;
    let test = ["test", "--workspace", "--no-fail-fast"];
    run(cargo().args(test).args(extra).env("TPAD_TEST_TOOLS", tools))
}

/// One build of everything: the programs with the same features as the tests,
/// so that nothing is compiled twice.
pub(crate) fn build() -> Result<()> {
    run(cargo().args(["build", "--workspace", "--lib", "--bins", "--tests"]))
}
