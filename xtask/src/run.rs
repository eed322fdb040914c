//! Running commands.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// The top of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace's root")
}

/// Where cargo builds to.
pub(crate) fn target() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(directory) => {
            std::path::absolute(root().join(directory)).context("CARGO_TARGET_DIR is no path")
        }
        None => Ok(root().join("target")),
    }
}

/// The cargo that runs this.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Says something to whoever runs this.
#[expect(clippy::print_stderr, reason = "xtask is a terminal program and this is its one voice")]
pub(crate) fn say(message: &str) {
    eprintln!("{message}");
}

/// Runs a command in the checkout's root and lets it speak; an error when it
/// fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    say(&format!("$ {shown}"));
    let status = command
        .current_dir(root())
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("{shown} could not be started"))?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// Runs a command as [`run`] does, and reads along what it writes to its standard
/// output, line by line.
#[expect(clippy::print_stdout, reason = "what the command says is passed on")]
pub(crate) fn run_reading(command: &mut Command, mut read: impl FnMut(&str)) -> Result<()> {
    let shown = shown(command);
    say(&format!("$ {shown}"));
    let command = command.current_dir(root()).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{shown} could not be started"))?;
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).with_context(|| shown.clone())? > 0 {
            let text = String::from_utf8_lossy(&line);
            print!("{text}");
            read(text.trim_end());
            line.clear();
        }
    }
    let status = child.wait().with_context(|| shown.clone())?;
    if !status.success() {
        bail!("{shown}: {status}");
    }
    Ok(())
}

/// What a command writes to its standard output; an error, with what it wrote
/// to standard error, when it fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{shown} could not be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown}: {}\n{}", output.status, said.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{shown} did not write UTF-8"))
}

/// The files that git tracks, relative to the root.
pub(crate) fn tracked() -> Result<Vec<PathBuf>> {
    let listing = output(Command::new("git").args(["ls-files", "-z"]))?;
    let paths = listing.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from);
    // A file may be deleted in the working tree and still be in the index.
    Ok(paths.filter(|path| root().join(path).is_file()).collect())
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut shown = program.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned();
    for argument in command.get_args() {
        shown.push(' ');
        shown.push_str(&argument.to_string_lossy());
    }
    shown
}
