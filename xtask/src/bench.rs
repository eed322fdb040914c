//! `cargo xtask bench`: tpad side by side with what one would use instead.
//!
//! Sets up what the peers need, builds, and hands over to `side-by-side`
//! (tests/peers). What cannot be installed is not an error: the peer stays in the
//! table with the reason.

use std::process::Command;

use anyhow::Result;

use crate::run::{cargo, output, run, say, target};
use crate::tools::Environment;

/// Servers and the disk's limit, by program and Debian package.
const PROGRAMS: [(&str, &str); 4] = [
    ("nginx", "nginx-light"),
    ("redis-server", "redis-server"),
    ("memcached", "memcached"),
    ("fio", "fio"),
];

/// The loaders of checkpoints among the peers want PyTorch.
const PEERS: Environment = Environment {
    requirements: "tests/peers/requirements.txt",
    directory: ".tools/peers",
    what: "the peers of the benchmark into .tools/peers (once; about 6 GB, most of it PyTorch)",
};

/// Sets up, builds and runs; `arguments` go to `side-by-side`.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    let runs = !arguments.iter().any(|argument| argument == "--render" || argument == "--help");
    if runs {
        programs();
        if let Err(error) = PEERS.setup() {
            say(&format!("the peers in Python will be missing: {error:#}"));
        }
    }
    let packages = ["-p", "tpad", "-p", "tpactl", "-p", "tpad-peers"];
    run(cargo().args(["build", "--release", "--locked"]).args(packages))?;
    let target = target()?;
    run(Command::new(target.join("release/side-by-side")).args(arguments))
}

/// Installs what is missing where that is possible.
fn programs() {
    let missing = PROGRAMS.iter().filter(|(program, _)| !found(program));
    let missing: Vec<&str> = missing.map(|(_, package)| *package).collect();
    let root = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if missing.is_empty() || !root || !found("apt-get") {
        return;
    }
    say(&format!("installing {}", missing.join(", ")));
    let install = || {
        // Old lists of packages name versions that are gone.
        run(Command::new("apt-get").args(["update", "--quiet"]))?;
        let install = ["install", "--quiet", "--yes", "--no-install-recommends"];
        // Their services are not wanted: the benchmark starts its own.
        run(Command::new("apt-get").env("RUNLEVEL", "1").args(install).args(&missing))
    };
    if let Err(error) = install() {
        say(&format!("without {}: {error:#}", missing.join(", ")));
    }
}

fn found(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin".into(), "/sbin".into()];
    std::env::split_paths(&path).chain(sbin).any(|directory| directory.join(program).is_file())
}
