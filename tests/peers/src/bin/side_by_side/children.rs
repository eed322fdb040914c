//! Processes that never outlive the benchmark.
//!
//! Each has a process group of its own, which is ended when its [`Child`] goes. When
//! the benchmark itself is killed, the kernel ends what it started (`setpriv`).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// How often a process is looked at: nothing tells this program of another's port.
const LOOK: Duration = Duration::from_millis(5);

/// From SIGTERM to SIGKILL.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much of what a process wrote last goes into an error.
const TOLD_BYTES: usize = 240;

/// Set by a signal: everything that waits gives up.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// Has everything that waits give up.
pub(crate) fn stop() {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Whether [`stop`] was called.
pub(crate) fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// A running process.
#[derive(Debug)]
pub(crate) struct Child {
    child: std::process::Child,
    log: PathBuf,
}

/// Processors, as `taskset` takes them.
pub(crate) type Processors = str;

/// `program` on these processors, ended by the kernel when the benchmark is gone.
pub(crate) fn on(processors: &Processors, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "taskset", "-c", processors]).arg(program);
    command
}

/// `command` after everybody else who wants its processors.
pub(crate) fn last(command: &Command) -> Command {
    let mut last = Command::new("nice");
    last.args(["-n", "19"]).arg(command.get_program()).args(command.get_args());
    last
}

impl Child {
    /// Starts it; what it writes goes to the file `log`.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Result<Self> {
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let errors = output.try_clone()?;
        Self::spawn(command.stdout(output).stderr(errors), log)
    }

    fn spawn(command: &mut Command, log: PathBuf) -> Result<Self> {
        use std::os::unix::process::CommandExt as _;
        let child = command.stdin(Stdio::null()).process_group(0).spawn();
        let child = child.with_context(|| format!("{command:?} could not be started"))?;
        Ok(Self { child, log })
    }

    /// Its id; `setpriv` and `taskset` become what they start, so it is the program's.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until `ready` says so; an error when it ends before, or at the deadline.
    pub(crate) fn wait_until(
        &mut self,
        deadline: Duration,
        mut ready: impl FnMut(&Path) -> bool,
    ) -> Result<()> {
        let until = Instant::now() + deadline;
        while !ready(&self.log) {
            self.still_runs()?;
            pause(until).with_context(|| format!("not ready: {}", told(&self.log)))?;
        }
        Ok(())
    }

    /// An error when it has ended, with what it said last.
    pub(crate) fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("ended ({status}): {}", told(&self.log)),
            None => Ok(()),
        }
    }

    fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + deadline;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            pause(until).with_context(|| format!("no answer: {}", told(&self.log)))?;
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // It may be gone already.
            let _gone = kill_process_group(group, signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            // What it started itself may still be there.
            self.signal(Signal::KILL);
            return;
        }
        self.signal(Signal::TERM);
        let until = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::park_timeout(LOOK);
        }
        self.signal(Signal::KILL);
        let _reaped = self.child.wait();
    }
}

/// Runs a process to its end and returns what it wrote to its standard output; an
/// error, with what it said last, when it fails or the deadline passes.
pub(crate) fn output(command: &mut Command, log: &Path, deadline: Duration) -> Result<String> {
    let answer = log.with_extension("out");
    let errors = File::create(log).with_context(|| log.display().to_string())?;
    let stdout = File::create(&answer).with_context(|| answer.display().to_string())?;
    let mut child = Child::spawn(command.stdout(stdout).stderr(errors), log.to_owned())?;
    let status = child.wait(deadline)?;
    if !status.success() {
        bail!("{}", told(log));
    }
    std::fs::read_to_string(&answer).with_context(|| answer.display().to_string())
}

fn pause(until: Instant) -> Result<()> {
    if stopped() {
        bail!("interrupted");
    }
    if Instant::now() >= until {
        bail!("the deadline passed");
    }
    std::thread::park_timeout(LOOK);
    Ok(())
}

/// The last line that says something, for people: a traceback's last, a log's last.
/// What Mooncake's library tells while it ends says nothing: `I1129 13:45:18.4 ...`.
fn told(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let chatter = |line: &str| {
        let number = line.strip_prefix('I').and_then(|rest| rest.get(..4));
        number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut lines = text.lines().rev().filter(|line| !line.trim().is_empty());
    let line = lines.find(|line| !chatter(line)).unwrap_or("said nothing");
    let line: String = line.chars().filter(|c| !c.is_control()).collect();
    let cut = line.char_indices().map(|(at, _)| at).find(|at| *at >= TOLD_BYTES);
    line[..cut.unwrap_or(line.len())].trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> PathBuf {
        use std::sync::atomic::AtomicU32;
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        std::env::temp_dir().join(format!("tpad-peers-test-{}-{n}.log", std::process::id()))
    }

    fn shell(script: &str) -> Command {
        let mut command = on("0", "sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failure_says_the_last_line_and_a_success_its_output() {
        let log = log();
        let deadline = Duration::from_secs(20);
        let said = output(&mut shell("echo out; echo note >&2"), &log, deadline).expect("it works");
        assert_eq!(said, "out\n");
        let error =
            output(&mut shell("echo first >&2; echo 'last one' >&2; exit 3"), &log, deadline);
        assert_eq!(error.expect_err("it fails").to_string(), "last one");
        let script = "echo 'get: -707' >&2; echo 'I1129 13:45:18.409 x.cpp:6] bye' >&2; exit 1";
        let error = output(&mut shell(script), &log, deadline);
        assert_eq!(error.expect_err("it fails").to_string(), "get: -707");
    }

    #[test]
    fn what_a_process_started_ends_with_it() {
        let log = log();
        let mut child = Child::start(&mut shell("sleep 1000 & echo $!; wait"), log).expect("sh");
        let mut grandchild = String::new();
        let read = |log: &Path| {
            grandchild = std::fs::read_to_string(log).unwrap_or_default().trim().to_owned();
            !grandchild.is_empty()
        };
        child.wait_until(Duration::from_secs(20), read).expect("it says its child's id");
        let pid = child.pid();
        drop(child);
        let alive = |pid: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie waits for init to reap it.
            !stat.is_empty() && !stat.contains(") Z ")
        };
        assert!(!alive(&pid.to_string()));
        let until = Instant::now() + Duration::from_secs(20);
        while alive(&grandchild) && Instant::now() < until {
            std::thread::park_timeout(LOOK);
        }
        assert!(!alive(&grandchild));
    }

    #[test]
    fn who_is_never_ready_is_given_up() {
        let mut child = Child::start(&mut shell("sleep 1000"), log()).expect("sh starts");
        let late = child.wait_until(Duration::from_millis(20), |_| false);
        assert!(late.is_err());
        let mut child = Child::start(&mut shell("echo no port"), log()).expect("sh starts");
        let ended = child.wait_until(Duration::from_secs(20), |_| false).expect_err("it ends");
        assert!(ended.to_string().contains("no port"), "{ended}");
    }
}
