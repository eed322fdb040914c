//! What operators see of leases.

use serde::Serialize;

/// Who holds leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct WorkerName {
    /// Its process, as this daemon sees it; `None` where the kernel does not say.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: Option<u32>,
    /// What it calls itself.
    pub name: String,
}

/// What one worker holds, for operators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerStatus {
    /// Who it is.
    #[serde(flatten)]
    pub worker: WorkerName,
    /// Leases.
    pub leases: u64,
    /// Bytes of the slots that they name, each once.
    pub bytes: u64,
    /// Bytes of further slots, which it holds by directories.
    pub direct_bytes: u64,
    /// Bytes of slots on devices that its leases name or it holds by directories, each once.
    pub device_bytes: u64,
    /// How long it is connected.
    pub connected_seconds: u64,
    /// The age of its oldest lease.
    pub oldest_seconds: Option<u64>,
}

/// What all workers hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseStatus {
    /// Bytes of slots that are leased, each once.
    pub bytes: u64,
    /// Bytes of further slots, which workers hold by directories, each once.
    pub direct_bytes: u64,
    /// What both may be together.
    pub most_bytes: u64,
    /// The workers, the longest connected first.
    pub workers: Vec<WorkerStatus>,
}
