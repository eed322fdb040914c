//! Servers that never outlive the tests.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// Starts a program and waits for the end of its own standard input, which
/// comes when the test process ends, however it ends. Then it kills what it
/// started and removes the directory.
const HOLD: &str = r#"
directory=$1; shift
"$@" >"$directory/log" 2>&1 </dev/null &
server=$!
echo "$server" >"$directory/pid"
read -r _
kill -TERM "$server" 2>/dev/null
kill -CONT "$server" 2>/dev/null
(sleep 10; kill -KILL "$server") 2>/dev/null &
patience=$!
wait "$server" 2>/dev/null
kill -KILL "$patience" 2>/dev/null
rm -rf "$directory"
"#;

/// A server with a directory of its own.
#[derive(Debug)]
pub struct Leash {
    // Its standard input is the leash.
    holder: Child,
    directory: PathBuf,
}

impl Leash {
    /// Starts the program that `command` makes of the server's directory; its
    /// output goes to `log` in there.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: impl FnOnce(&Path) -> Command) -> Self {
        let directory = TempDir::with_prefix("tpad-test-").expect("a temporary directory").keep();
        let server = command(&directory);
        let mut holder = Command::new("sh");
        holder.arg("-c").arg(HOLD).arg("hold").arg(&directory);
        holder.arg(server.get_program()).args(server.get_args());
        let set = |(key, value): (&OsStr, Option<&OsStr>)| {
            value.map(|value| (key.to_owned(), value.to_owned()))
        };
        holder.envs(server.get_envs().filter_map(set));
        let holder = holder.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { holder: holder.spawn().expect("sh starts"), directory }
    }

    /// Sends the server a signal, by its name for `kill`.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.directory.join("pid")).expect("it was started");
        let sent = Command::new("kill").args(["-s", signal, pid.trim()]).status();
        assert!(sent.expect("kill runs").success(), "the server was gone:\n{}", self.log());
    }

    /// What the server has said.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        drop(self.holder.wait());
    }
}
