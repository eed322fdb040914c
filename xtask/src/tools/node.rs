//! A gRPC client from npm, pinned by a lock file.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run::{output, root, run, say};

/// What is installed, from the checkout's root.
const PINNED: [&str; 2] = ["tests/node/package.json", "tests/node/package-lock.json"];

/// Where, from there. The tests look here too (`tests/src/tools.rs`).
const DIRECTORY: &str = ".tools/node";

/// The oldest Node.js that is still looked after; the packages themselves need 12.
const OLDEST_NODE: u32 = 18;

/// Installs the packages unless they stand as the lock file wants them.
pub(super) fn setup() -> Result<()> {
    let directory = root().join(DIRECTORY);
    let stamp = directory.join("installed.json");
    let [package, lock] = PINNED.map(|path| root().join(path));
    let wanted = std::fs::read_to_string(&lock)
        .with_context(|| format!("{} cannot be read", lock.display()))?;
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    check()?;
    say("installing a gRPC client from npm into .tools/ (once; about 15 MB)");
    std::fs::create_dir_all(&directory).context(".tools/node cannot be made")?;
    for from in [&package, &lock] {
        let name = from.file_name().context("a file has a name")?;
        std::fs::copy(from, directory.join(name))
            .with_context(|| format!("{} cannot be copied to .tools/node", from.display()))?;
    }
    // Exactly what the lock file says, and nothing of theirs is run.
    let install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", DIRECTORY];
    run(Command::new("npm").args(install))?;
    // Written last: an interrupted installation is made again.
    std::fs::write(&stamp, wanted).context("the stamp of .tools/node cannot be written")
}

fn check() -> Result<()> {
    let need = format!("node {OLDEST_NODE} or newer and npm are needed for the tests' clients");
    let answer = output(Command::new("node").arg("--version")).with_context(|| need.clone())?;
    match major(&answer) {
        Some(found) if found >= OLDEST_NODE => Ok(()),
        _ => bail!("node is {}: {need}", answer.trim()),
    }
}

fn major(answer: &str) -> Option<u32> {
    answer.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(major("v20.20.2\n"), Some(20));
        assert!(major("v9.11.2").expect("a version") < OLDEST_NODE);
        assert_eq!(major("node"), None);
    }
}
