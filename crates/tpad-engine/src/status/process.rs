//! What the process has used so far: what a benchmark divides by.

use serde::Serialize;

/// Counts since the process started, as the system keeps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ProcessStatus {
    /// Seconds of processor time in user space, over all threads.
    pub user_seconds: f64,
    /// The same, in the system on its behalf.
    pub system_seconds: f64,
    /// Pages that had to be given memory or mapped, without a disk.
    pub minor_faults: u64,
    /// Memory that it holds now.
    pub resident_bytes: u64,
}

impl ProcessStatus {
    /// This process's; `None` where the system does not say.
    #[must_use]
    pub fn now() -> Option<Self> {
        let stat = procfs::process::Process::myself().and_then(|me| me.stat()).ok()?;
        #[expect(clippy::cast_precision_loss, reason = "ticks of a hundredth of a second")]
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Some(Self {
            user_seconds: seconds(stat.utime),
            system_seconds: seconds(stat.stime),
            minor_faults: stat.minflt,
            resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_fresh_memory_are_seen() {
        let before = ProcessStatus::now().expect("the system says");
        let spent = |status: ProcessStatus| status.user_seconds + status.system_seconds;
        let mut pages = Vec::new();
        let after = loop {
            // Fresh pages, sooner or later: what others gave back may be used again first.
            pages.push(std::hint::black_box(vec![1u8; 16 << 20]));
            let now = ProcessStatus::now().expect("the system says");
            if spent(now) > spent(before) && now.minor_faults > before.minor_faults {
                break now;
            }
        };
        assert!(after.resident_bytes >= pages.len() as u64 * (16 << 20), "{after:?}");
    }
}
