//! Programs that the tests run: pinned tools, and the two of this workspace.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// The workspace's root.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace")
}

/// A pinned tool, such as `weed`, where `cargo xtask setup` put it.
///
/// # Panics
/// When it is not there.
#[must_use]
pub fn tool(name: &str) -> PathBuf {
    let directory = std::env::var_os("TPAD_TEST_TOOLS")
        .map_or_else(|| workspace().join(".tools/venv/bin"), PathBuf::from);
    let path = directory.join(name);
    assert!(path.is_file(), "{} is missing: run `cargo xtask setup`", path.display());
    path
}

/// A script of `tests/node`, with the packages that `cargo xtask setup` installed.
///
/// # Panics
/// When they are not there.
#[must_use]
pub fn node(script: &str) -> Command {
    let packages = workspace().join(".tools/node/node_modules");
    assert!(packages.is_dir(), "{} is missing: run `cargo xtask setup`", packages.display());
    let mut command = Command::new("node");
    command.env("NODE_PATH", packages).arg(workspace().join("tests/node").join(script));
    command
}

/// One of the workspace's programs, `tpad` or `tpactl`, as built last.
///
/// # Panics
/// When it is not built, or older than what it is built from: a test of an old
/// program proves nothing.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    // target/debug/deps/e2e-0123 -> target/debug/tpad
    let directory = test.parent().and_then(Path::parent).expect("tests lie in target/PROFILE/deps");
    let path = directory.join(name);
    let remedy = "run `cargo xtask test`, or `cargo build -p tpad -p tpactl` first";
    let built = modified(&path);
    assert!(built.is_some(), "{} is not built: {remedy}", path.display());
    // Cargo writes beside the program which files it was made from.
    let sources = std::fs::read_to_string(path.with_extension("d")).unwrap_or_default();
    let (_, sources) = sources.split_once(": ").unwrap_or_default();
    let newer = sources.split_whitespace().find(|source| modified(Path::new(source)) > built);
    assert!(newer.is_none(), "{} is older than {newer:?}: {remedy}", path.display());
    path
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}
