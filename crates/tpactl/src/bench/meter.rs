//! What both sides used: processor time and page faults, and where the daemon
//! found what it was asked for.

use serde::{Deserialize, Serialize};
use tpad_client::Client;

use crate::failure::{Exit, Failure};

/// Looks at a daemon and at this process.
pub(super) struct Meter<'c> {
    pub(super) client: &'c Client,
    pub(super) model: &'c str,
}

/// Counts at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Look {
    own: Option<Process>,
    daemon: Option<Process>,
    reads: Reads,
}

/// What was used between two looks; `None` where nobody counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Used {
    pub(super) client: Option<Process>,
    pub(super) daemon: Option<Process>,
    pub(super) reads: Reads,
}

/// A process's counts.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(super) struct Process {
    user_seconds: f64,
    system_seconds: f64,
    minor_faults: u64,
}

/// Where blocks were found, by level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Reads {
    pub(super) hbm: u64,
    pub(super) dram: u64,
    pub(super) nvme: u64,
    pub(super) object_store: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    process: Option<Process>,
    models: Vec<Model>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Model {
    name: String,
    tiers: Vec<Tier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tier {
    reads: Reads,
}

impl Meter<'_> {
    pub(super) async fn look(&self) -> Result<Look, Failure> {
        let status: Status =
            serde_json::from_str(&self.client.status().await?).map_err(|error| {
                Failure::new(Exit::Internal, format!("the daemon's status: {error}"))
            })?;
        let model = status.models.into_iter().find(|model| model.name == self.model);
        let mut reads = Reads::default();
        for tier in model.into_iter().flat_map(|model| model.tiers) {
            reads.add(&tier.reads);
        }
        Ok(Look { own: Process::own(), daemon: status.process, reads })
    }
}

impl Look {
    pub(super) fn since(&self, before: &Self) -> Used {
        let used = |now: Option<Process>, then: Option<Process>| Some(now?.since(&then?));
        Used {
            client: used(self.own, before.own),
            daemon: used(self.daemon, before.daemon),
            reads: self.reads.since(&before.reads),
        }
    }
}

impl Process {
    fn own() -> Option<Self> {
        let stat = procfs::process::Process::myself().and_then(|me| me.stat()).ok()?;
        #[expect(clippy::cast_precision_loss, reason = "ticks of a hundredth of a second")]
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Some(Self {
            user_seconds: seconds(stat.utime),
            system_seconds: seconds(stat.stime),
            minor_faults: stat.minflt,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            user_seconds: self.user_seconds - before.user_seconds,
            system_seconds: self.system_seconds - before.system_seconds,
            minor_faults: self.minor_faults.saturating_sub(before.minor_faults),
        }
    }

    pub(super) fn cpu_seconds(&self) -> f64 {
        self.user_seconds + self.system_seconds
    }

    pub(super) fn minor_faults(&self) -> u64 {
        self.minor_faults
    }
}

impl Reads {
    fn add(&mut self, other: &Self) {
        self.hbm += other.hbm;
        self.dram += other.dram;
        self.nvme += other.nvme;
        self.object_store += other.object_store;
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            hbm: self.hbm.saturating_sub(before.hbm),
            dram: self.dram.saturating_sub(before.dram),
            nvme: self.nvme.saturating_sub(before.nvme),
            object_store: self.object_store.saturating_sub(before.object_store),
        }
    }

    pub(super) fn sum(&self) -> u64 {
        self.hbm + self.dram + self.nvme + self.object_store
    }
}
