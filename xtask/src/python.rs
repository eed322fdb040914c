//! `cargo xtask python` and `cargo xtask wheel`: the Python package, as a wheel and under
//! its tests.
//!
//! The wheel that is tested is built without optimisation, and installed into the
//! environment that the tests run in, so that what is tested is what people install.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::run::{cargo, root, run, say, target};
use crate::tools::Environment;

const PACKAGE: &str = "crates/tpad-python";

const PYTHON: Environment = Environment {
    requirements: "crates/tpad-python/tests/requirements.txt",
    directory: ".tools/python",
    what: "what the Python package is tested with into .tools/python (once; about 6 GB, most of it PyTorch)",
};

/// Where the wheel that is tested lies, and NumPy's, for environments without a network.
const TESTED: &str = ".tools/python/dist";
const WHEELS: &str = ".tools/python/wheels";

/// Builds the programs and the wheel and runs the package's tests; `extra` goes to pytest.
pub(crate) fn python(extra: &[String]) -> Result<()> {
    run(cargo().args(["build", "--locked", "--package", "tpad", "--package", "tpactl"]))?;
    tests(extra)
}

/// As [`python`], with programs that are there.
pub(crate) fn tests(extra: &[String]) -> Result<()> {
    let programs = PYTHON.setup()?;
    let python = programs.join("python");
    numpy(&python)?;
    build(&programs, Path::new(TESTED), &["--profile", "dev"])?;
    let wheel = only_wheel(Path::new(TESTED))?;
    let install = ["install", "--quiet", "--no-deps", "--force-reinstall", "--no-index"];
    run(pip(&python).args(install).arg(wheel))?;
    let mut pytest = Command::new(&python);
    pytest.args(["-m", "pytest", "-p", "no:cacheprovider"]).args(extra);
    pytest.arg(format!("{PACKAGE}/tests"));
    pytest.env("TPAD_TEST_PROGRAMS", target()?.join("debug"));
    pytest.env("TPAD_TEST_DIST", root().join(TESTED)).env("TPAD_TEST_WHEELS", root().join(WHEELS));
    run(pytest.env("PYTHONDONTWRITEBYTECODE", "1"))
}

/// Builds the wheel that people install, into `dist/`.
pub(crate) fn wheel() -> Result<()> {
    let programs = PYTHON.setup()?;
    build(&programs, Path::new("dist"), &["--release"])?;
    say(&format!("{}", only_wheel(Path::new("dist"))?.display()));
    Ok(())
}

/// Builds one wheel into a directory, in the place of what is there.
fn build(programs: &Path, into: &Path, how: &[&str]) -> Result<()> {
    let directory = root().join(into);
    if directory.exists() {
        std::fs::remove_dir_all(&directory)
            .with_context(|| format!("{} cannot be emptied", into.display()))?;
    }
    let mut maturin = Command::new(programs.join("maturin"));
    maturin.args(["build", "--quiet", "--locked", "--manifest-path"]);
    maturin.arg(format!("{PACKAGE}/Cargo.toml")).arg("--out").arg(into).args(how);
    // It asks the interpreter of its own environment.
    run(maturin.arg("--interpreter").arg(programs.join("python")))
}

/// NumPy's wheel, of the pinned version: what an empty environment is given.
fn numpy(python: &Path) -> Result<()> {
    let directory = root().join(WHEELS);
    if directory.is_dir() {
        return Ok(());
    }
    let pinned = std::fs::read_to_string(root().join(PYTHON.requirements))
        .with_context(|| format!("{} cannot be read", PYTHON.requirements))?;
    let pinned = pinned.lines().find(|line| line.starts_with("numpy=="));
    let pinned = pinned.context("numpy is not pinned")?;
    let download = ["download", "--quiet", "--no-deps", "--dest", WHEELS, pinned];
    run(pip(python).args(download))
}

fn pip(python: &Path) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--disable-pip-version-check", "--no-input"]);
    pip
}

fn only_wheel(directory: &Path) -> Result<PathBuf> {
    let mut files = root().join(directory).read_dir().context("there is no wheel")?;
    let wheel = files.find_map(|file| {
        let path = file.ok()?.path();
        path.extension().is_some_and(|extension| extension == "whl").then_some(path)
    });
    wheel.context("there is no wheel")
}
