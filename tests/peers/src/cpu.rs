//! Processor time of processes and all that they started.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};

/// A process as `/proc/PID/stat` has it.
struct Stat {
    parent: u32,
    /// Its threads, those that ended too, and the children it has waited for.
    ticks: u64,
}

/// User and system seconds of the processes `roots` and their descendants, to a
/// tick (10 ms).
///
/// # Errors
/// When one of the roots is gone: what is left would look cheap.
pub fn trees_seconds(roots: &[u32]) -> Result<f64> {
    let all = processes()?;
    let mut seconds = 0.0;
    for root in roots {
        let stat = all.get(root).with_context(|| format!("process {root} is gone"))?;
        let below = all.iter().filter(|(pid, _)| descends(&all, **pid, *root));
        let ticks = stat.ticks + below.map(|(_, stat)| stat.ticks).sum::<u64>();
        #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52 ticks")]
        let in_seconds = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
        seconds += in_seconds;
    }
    Ok(seconds)
}

/// User and system seconds of this process and all that it started.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn own_seconds() -> Result<f64> {
    trees_seconds(&[std::process::id()])
}

fn descends(all: &BTreeMap<u32, Stat>, pid: u32, root: u32) -> bool {
    let mut at = pid;
    // A parent is older than its child, so this ends; the bound is for pids that
    // were given again while the list was read.
    for _ in 0..64 {
        match all.get(&at) {
            Some(stat) if stat.parent == root => return true,
            Some(stat) => at = stat.parent,
            None => return false,
        }
    }
    false
}

fn processes() -> Result<BTreeMap<u32, Stat>> {
    let entries = Path::new("/proc").read_dir().context("/proc cannot be read")?;
    let mut all = BTreeMap::new();
    for entry in entries {
        let entry = entry.context("/proc cannot be read")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that ended meanwhile is none.
        let Ok(text) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some(stat) = Stat::read(&text) {
            all.insert(pid, stat);
        }
    }
    Ok(all)
}

impl Stat {
    fn read(text: &str) -> Option<Self> {
        // The name is in brackets and may hold any character.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Fields 4 and 14 to 17 of proc(5); the third is the first here.
        let number = |n: usize| fields.get(n - 3)?.parse::<u64>().ok();
        let ticks = number(14)? + number(15)? + number(16)? + number(17)?;
        Some(Self { parent: u32::try_from(number(4)?).ok()?, ticks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_moves_no_field() {
        let text = "7 (a) b) (c) S 3 7 7 0 -1 4194560 1 2 0 0 10 20 30 40 20 0 1 0 5 6 7";
        let stat = Stat::read(text).expect("it is whole");
        assert_eq!((stat.parent, stat.ticks), (3, 100));
        assert!(Stat::read("7 (cut").is_none());
    }

    #[test]
    fn only_what_a_process_started_counts_as_its_own() {
        let stat = |parent| Stat { parent, ticks: 1 };
        let all = BTreeMap::from([(1, stat(0)), (2, stat(1)), (3, stat(2)), (4, stat(1))]);
        let below = |root| all.keys().filter(|pid| descends(&all, **pid, root)).count();
        assert_eq!((below(1), below(2), below(4)), (3, 1, 0));
    }

    #[test]
    fn work_is_counted_and_a_process_that_is_gone_is_an_error() {
        let before = own_seconds().expect("this process runs");
        let mut child = std::process::Command::new("true").spawn().expect("true starts");
        child.wait().expect("it ends");
        assert!(trees_seconds(&[child.id()]).is_err());
        assert!(own_seconds().expect("this process runs") >= before);
    }
}
