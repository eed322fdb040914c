//! `cargo xtask ci`: all that must hold before a change lands.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::run::{cargo, run, say};
use crate::{boundary, compat, fuzz, house, image, loom, test, tools};

/// Runs every check, quick ones first, and reports all that failed. The tests
/// come last, so that their result lines end the log.
pub(crate) fn ci() -> Result<()> {
    let tools = tools::setup()?;
    let deny = || {
        // The advisory database is not read: it would make an old commit fail.
        run(tools::tool(&tools, "cargo-deny").args(["check", "licenses", "bans", "sources"]))
    };
    let docs = || {
        let mut command = cargo();
        run(command.args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    };
    // These tests are no part of `--all-targets`: they need an image, or a program
    // of an earlier commit.
    let targets = ["--workspace", "--all-targets", "--test", "image", "--test", "compat"];
    let checks: [(&str, &dyn Fn() -> Result<()>); 12] = [
        ("crate boundaries", &boundary::check),
        ("house rules", &house::check),
        ("format", &|| run(cargo().args(["fmt", "--all", "--check"]))),
        ("proto", &|| run(tools::tool(&tools, "buf").args(["lint", "proto"]))),
        ("licences, bans, sources", &deny),
        ("lints", &|| run(cargo().arg("clippy").args(targets).args(["--", "-D", "warnings"]))),
        ("docs", &docs),
        ("fuzz", &|| fuzz::fuzz(&[])),
        ("loom", &loom::loom),
        ("image", &image::image),
        ("compat", &compat::compat),
        ("tests", &|| test::test(&[])),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        let start = Instant::now();
        let result = check();
        let seconds = start.elapsed().as_secs();
        match result {
            Ok(()) => say(&format!("== {name}: ok ({seconds} s)")),
            Err(error) => {
                say(&format!("== {name}: FAILED ({seconds} s)\n{error:#}"));
                failed.push(name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    say("== all checks passed");
    Ok(())
}
