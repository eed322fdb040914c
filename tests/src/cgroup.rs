//! A process's peak memory, as the kernel counts it.

use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Where memory is counted for a process that a test starts.
#[derive(Debug)]
pub enum Meter {
    /// A memory cgroup of its own, with the file that holds its peak.
    Cgroup {
        /// The group's directory.
        directory: PathBuf,
        /// The file in it that holds the peak.
        peak: &'static str,
    },
    /// Groups cannot be made here: the process's own high-water mark, from
    /// `/proc`, which counts shared memory too.
    Process,
}

impl Meter {
    /// A new group under the one that this process is in, of either version,
    /// or the process's own mark where none can be made.
    #[must_use]
    pub fn new() -> Self {
        let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let candidates = groups.lines().filter_map(candidate);
        let mut made = candidates.filter_map(|(parent, peak)| make(&parent, peak).ok());
        made.next().unwrap_or(Self::Process)
    }

    /// The command with its memory counted from its first instruction.
    #[must_use]
    pub fn wrap(&self, command: &Command) -> Command {
        let mut wrapped = Command::new("sh");
        match self {
            Self::Cgroup { directory, .. } => {
                wrapped.args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#]).arg(directory);
            }
            Self::Process => {
                wrapped.args(["-c", r#"exec "$@""#, "sh"]);
            }
        }
        wrapped.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(key, value),
                None => wrapped.env_remove(key),
            };
        }
        wrapped
    }

    /// The peak so far in bytes. `pid` is the wrapped command's.
    ///
    /// # Errors
    /// When the kernel's file cannot be read.
    pub fn peak_bytes(&self, pid: u32) -> Result<u64> {
        match self {
            Self::Cgroup { directory, peak } => {
                let text = std::fs::read_to_string(directory.join(peak))?;
                text.trim().parse().map_err(|_| unreadable(&text))
            }
            Self::Process => {
                let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
                let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kib =
                    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
                kib.map(|kib| kib * 1024).ok_or_else(|| unreadable(&text))
            }
        }
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Self::Cgroup { directory, .. } = self {
            // Refused while a process is in it, which then outlived its test.
            drop(std::fs::remove_dir(directory));
        }
    }
}

fn unreadable(text: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("no memory figure in {text:?}"))
}

/// The parent directory and the peak's file, for a line of `/proc/self/cgroup`.
fn candidate(line: &str) -> Option<(PathBuf, &'static str)> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let path = path.trim_start_matches('/');
    if controllers.split(',').any(|controller| controller == "memory") {
        let mount = Path::new("/sys/fs/cgroup/memory");
        // In a container the path is the host's and the mount is the group.
        let parent = Some(mount.join(path)).filter(|parent| parent.is_dir());
        return Some((parent.unwrap_or_else(|| mount.to_owned()), "memory.max_usage_in_bytes"));
    }
    let unified = Path::new("/sys/fs/cgroup").join(path);
    controllers.is_empty().then_some((unified, "memory.peak"))
}

fn make(parent: &Path, peak: &'static str) -> Result<Meter> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = parent.join(format!("tpad-test-{}-{number}", std::process::id()));
    std::fs::create_dir(&directory)?;
    // Removes the directory again unless it counts memory.
    let meter = Meter::Cgroup { directory, peak };
    meter.peak_bytes(0)?;
    Ok(meter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_a_process_is_at_least_what_it_used() {
        let meter = Meter::new();
        // `tail` without a newline in sight holds all that it reads.
        let mut hungry = Command::new("sh");
        hungry.args(["-c", "head -c 50331648 /dev/zero | tail -n 1 | wc -c; cat"]);
        let mut child = meter
            .wrap(&hungry)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sh starts");
        let mut said = [0; 9];
        let output = child.stdout.as_mut().expect("it is piped");
        std::io::Read::read_exact(output, &mut said).expect("wc speaks");
        assert_eq!(&said, b"50331648\n");
        let peak = meter.peak_bytes(child.id()).expect("a peak");
        drop(child.stdin.take());
        child.wait().expect("it ends");
        if let Meter::Cgroup { .. } = meter {
            assert!((48 << 20..256 << 20).contains(&peak), "{peak} bytes");
        }
    }

    #[test]
    fn both_versions_name_their_file() {
        let v2 = candidate("0::/user.slice").expect("v2");
        assert_eq!(v2, (PathBuf::from("/sys/fs/cgroup/user.slice"), "memory.peak"));
        let v1 = candidate("4:memory:/").expect("v1");
        assert_eq!(v1.1, "memory.max_usage_in_bytes");
        assert_eq!(candidate("3:cpu,cpuacct:/x"), None);
    }
}
