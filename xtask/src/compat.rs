//! `cargo xtask compat`: the program of an early commit serves what is written
//! now.
//!
//! Old runtimes keep working when a model grows; nothing shows that better than an
//! old runtime. Its sources come from the repository's history.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run::{cargo, output, root, run};
use crate::{test, tools};

/// The first `tpad` that served a real checkpoint, byte for byte.
const EARLY: &str = "a6611d6ea7236c0f1e42890c3abf41784ac79458";

/// Builds the early program, and runs the test with it.
pub(crate) fn compat() -> Result<()> {
    let tools = tools::setup()?;
    let program = early(&root().join("target/compat").join(EARLY))?;
    test::build()?;
    let mut test = cargo();
    test.args(["test", "--package", "tpad-tests", "--test", "compat"]);
    run(test.env("TPAD_TEST_TOOLS", tools).env("TPAD_TEST_EARLY", program))
}

/// The early program, built below `place` unless it is there.
fn early(place: &Path) -> Result<PathBuf> {
    let (sources, target) = (place.join("sources"), place.join("target"));
    let program = target.join("debug/tpad");
    if program.is_file() {
        return Ok(program);
    }
    let known = Command::new("git")
        .args(["cat-file", "-e", &format!("{EARLY}^{{commit}}")])
        .current_dir(root())
        .status()
        .context("git could not be started")?;
    if !known.success() {
        bail!("commit {EARLY} is not in this clone: run `git fetch --unshallow`");
    }
    std::fs::create_dir_all(&sources).context("target/compat cannot be made")?;
    let archive = place.join("sources.tar");
    run(Command::new("git").args(["archive", "--output"]).arg(&archive).arg(EARLY))?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&sources))?;
    let mut build = cargo();
    build.args(["build", "--locked", "--package", "tpad", "--bin", "tpad", "--manifest-path"]);
    build.arg(sources.join("Cargo.toml")).arg("--target-dir").arg(&target);
    // Tables for debuggers double the time, and nobody debugs it.
    run(build.env("CARGO_PROFILE_DEV_DEBUG", "false"))?;
    let version = output(Command::new(&program).arg("--version"))?;
    if !version.starts_with("tpad ") {
        bail!("{} is no tpad: {version}", program.display());
    }
    Ok(program)
}
