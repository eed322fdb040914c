//! `cargo xtask loom`: the protocol of handoff in every order of events.
//!
//! loom has to be under the code that it runs, so that code is built anew, under
//! `--cfg loom`, in a directory of its own: nothing else is built again for it.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use crate::coverage;
use crate::run::{cargo, root, run_reading};

/// Of these one shows that the others would notice.
const TESTS: &[&str] = &[
    "every_order_of_the_protocol_is_needed",
    "no_slot_is_written_under_its_reader_when_another_block_comes",
    "no_slot_is_written_under_its_reader_when_the_same_word_comes_again",
    "no_slot_is_written_under_two_readers_with_one_cell",
    "no_slot_is_written_under_two_readers_with_two_cells",
];

/// Runs the models, about a minute.
pub(crate) fn loom() -> Result<()> {
    let mut command = cargo();
    command.args(["test", "-p", "tpad-handoff", "--lib", "--release", "--target-dir"]);
    command.arg(root().join("target/loom")).args(["--", "model::"]);
    command.env("CARGO_ENCODED_RUSTFLAGS", "--cfg=loom");
    // Linked as a daemon is, it would take as long to build as to run.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off");
    command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    let mut passed = BTreeSet::new();
    run_reading(&mut command, |line| passed.extend(coverage::passed(line).map(str::to_owned)))?;
    // Without the flag there are no models, and nothing that could fail.
    for test in TESTS {
        ensure!(passed.contains(*test), "{test} did not run");
    }
    Ok(())
}
