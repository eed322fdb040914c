//! Leases: blocks that workers of this machine use where they lie.
//!
//! A worker is known by one connection. What it holds is counted against a bound of
//! its own, and what all hold, each block once, against one of all: leased blocks
//! cannot be given up, and the rest of the memory must be enough to go on.

mod acquire;
mod bounds;
mod direct;
mod expected;
mod ledger;
mod on_device;
mod status;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tpad_hbm::{DeviceId, HbmLevel};
use tpad_store::{BlockBytes, Hierarchy, InSlot as _, Place};

pub use self::acquire::Acquired;
pub use self::bounds::{LeaseBounds, LeaseHolder};
use self::direct::Direct;
pub use self::direct::DirectoryOffer;
use self::expected::Expectations;
use self::ledger::{Full, Ledger};
pub use self::on_device::{DeviceAcquired, DeviceLeased};
use self::on_device::{DeviceLease, DeviceTurns};
pub use self::status::{LeaseStatus, WorkerName, WorkerStatus};
use crate::{Block, EngineError, EngineMetrics};

/// Leases of one worker: enough for each expert of the largest models several times.
/// One that is leased again takes no more memory of blocks, but some for the record.
const WORKER_LEASES: usize = 1 << 16;

/// What slots are multiples of.
const PAGE_BYTES: u64 = 4096;

/// All leases of a daemon.
#[derive(Debug)]
pub(crate) struct Leases {
    bounds: LeaseBounds,
    /// Names workers.
    next_worker: AtomicU64,
    /// Names leases, and never the same twice.
    next_lease: AtomicU64,
    /// What is leased by anybody. Locked after a worker's own.
    all: Mutex<Ledger>,
    workers: Mutex<BTreeMap<u64, Weak<WorkerState>>>,
    /// Pages that batches may hold while they wait: as many as may be leased. A batch
    /// takes what it needs at once.
    shares: Arc<Semaphore>,
    /// By device, of those that were asked for.
    turns: Mutex<BTreeMap<DeviceId, Arc<DeviceTurns>>>,
    hierarchy: Arc<Hierarchy>,
    /// GPU memory, if there is any.
    devices: Option<Arc<HbmLevel>>,
    /// Tells this process from others: what memory is shared under.
    epoch: u64,
    /// What workers held by directories at the last look. Locked alone.
    direct: Mutex<Vec<Place>>,
    /// Directories are empty, since workers hold more than they may.
    shut: AtomicBool,
    /// When uses may be asked for again between two looks, and how many were not counted yet.
    learn_again: Mutex<Option<Instant>>,
    uses_taken: AtomicU64,
    metrics: EngineMetrics,
}

/// A worker's leases. Dropped, all of them are over.
#[derive(Debug)]
pub struct Worker {
    state: Arc<WorkerState>,
}

#[derive(Debug)]
struct WorkerState {
    number: u64,
    name: WorkerName,
    since: Instant,
    all: Arc<Leases>,
    /// Whether it wants to hold blocks by directories.
    directories: bool,
    /// Locked alone.
    direct: Mutex<Direct>,
    /// What it held by them at the last look, beside its leases.
    direct_bytes: AtomicU64,
    overdrawn: Notify,
    /// What it is likely to ask for, on its way to a device. Locked alone.
    expected: Mutex<Expectations>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    leases: BTreeMap<u64, Lease>,
    on_devices: BTreeMap<u64, DeviceLease>,
    ledger: Ledger,
}

/// A block that cannot be given up.
#[derive(Debug)]
struct Lease {
    place: Place,
    since: Instant,
    /// What keeps it.
    _bytes: BlockBytes,
}

/// A block that was leased.
#[derive(Debug)]
pub struct Leased {
    /// The lease's number.
    pub lease: u64,
    /// Where the block lies.
    pub place: Place,
    /// What it is.
    pub block: Block,
    /// Its number in the generation's directory, for workers that want it.
    pub ordinal: Option<u32>,
}

impl Leases {
    pub(crate) fn new(
        bounds: LeaseBounds,
        hierarchy: Arc<Hierarchy>,
        devices: Option<Arc<HbmLevel>>,
        metrics: EngineMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            next_worker: AtomicU64::new(1),
            next_lease: AtomicU64::new(1),
            all: Mutex::default(),
            workers: Mutex::default(),
            shares: Arc::new(Semaphore::new(pages(bounds.bytes) as usize)),
            turns: Mutex::default(),
            hierarchy,
            devices,
            epoch: epoch(),
            direct: Mutex::default(),
            shut: AtomicBool::new(false),
            learn_again: Mutex::default(),
            uses_taken: AtomicU64::new(0),
            metrics,
        })
    }

    /// Tells this process from others.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The most that one worker may hold.
    fn worker_bytes(&self) -> u64 {
        self.bounds.worker_bytes.min(self.bounds.bytes)
    }

    /// A worker that holds nothing yet; `directories` if it wants to hold blocks without
    /// asking.
    pub(crate) fn worker(self: &Arc<Self>, name: WorkerName, directories: bool) -> Worker {
        let number = self.next_worker.fetch_add(1, Ordering::Relaxed);
        let state = Arc::new(WorkerState {
            number,
            name,
            since: Instant::now(),
            all: Arc::clone(self),
            directories,
            direct: Mutex::default(),
            direct_bytes: AtomicU64::new(0),
            overdrawn: Notify::new(),
            expected: Mutex::default(),
            held: Mutex::default(),
        });
        lock(&self.workers).insert(number, Arc::downgrade(&state));
        Worker { state }
    }

    fn turns(&self, device: DeviceId) -> Arc<DeviceTurns> {
        Arc::clone(lock(&self.turns).entry(device).or_default())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut all = lock(&self.all);
        let changed = change(&mut all);
        self.metrics.leased(all.bytes());
        changed
    }

    /// What everybody holds.
    pub(crate) fn status(&self) -> LeaseStatus {
        let workers: Vec<_> = lock(&self.workers).values().filter_map(Weak::upgrade).collect();
        // One lock at a time: whoever leases takes a worker's first.
        let direct = lock(&self.direct).clone();
        let all = lock(&self.all);
        let (bytes, direct_bytes) = (all.bytes(), all.bytes_beside(&direct));
        drop(all);
        LeaseStatus {
            bytes,
            direct_bytes,
            most_bytes: self.bounds.bytes,
            workers: workers.iter().map(|worker| worker.status()).collect(),
        }
    }
}

impl Worker {
    /// The most bytes that it may hold.
    #[must_use]
    pub fn most_bytes(&self) -> u64 {
        self.state.all.worker_bytes()
    }

    /// Leases all of these, which are in memory, or none.
    fn lease(&self, blocks: Vec<Block>) -> Result<Vec<Leased>, EngineError> {
        let all = &self.state.all;
        let places: Vec<Place> = blocks.iter().map(|block| block.served.bytes.place()).collect();
        // What it asks for now is counted as a lease.
        let asked: HashSet<Place> = places.iter().copied().collect();
        let others = |mut direct: Vec<Place>| {
            direct.retain(|place| !asked.contains(place));
            direct
        };
        let direct = others(self.state.held_directly());
        let mut held = lock(&self.state.held);
        if held.leases.len() + held.on_devices.len() + places.len() > WORKER_LEASES {
            return Err(EngineError::TooManyLeases { limit: WORKER_LEASES });
        }
        let full =
            |Full { wanted, limit }, holder| EngineError::LeasesFull { wanted, limit, holder };
        let most = self.most_bytes().saturating_sub(held.ledger.bytes_beside(&direct));
        held.ledger.add(&places, most).map_err(|error| full(error, LeaseHolder::Worker))?;
        let add = || {
            let direct = others(lock(&all.direct).clone());
            all.change(|ledger| {
                let most = all.bounds.bytes.saturating_sub(ledger.bytes_beside(&direct));
                ledger.add(&places, most)
            })
        };
        let added = add().or_else(|_| {
            // What workers held at the last look they may have let go of since.
            all.look_again();
            add()
        });
        if let Err(error) = added {
            held.ledger.remove(&places);
            return Err(full(error, LeaseHolder::All));
        }
        let since = Instant::now();
        let first = all.next_lease.fetch_add(places.len() as u64, Ordering::Relaxed);
        let leased = (first..).zip(places).zip(blocks).map(|((lease, place), block)| {
            let bytes = block.served.bytes.clone();
            held.leases.insert(lease, Lease { place, since, _bytes: bytes });
            Leased { lease, place, block, ordinal: None }
        });
        Ok(leased.collect())
    }

    /// Ends leases; those that are not its own are passed over.
    pub fn release(&self, leases: &[u64]) {
        let mut held = lock(&self.state.held);
        let ended: Vec<Lease> =
            leases.iter().filter_map(|lease| held.leases.remove(lease)).collect();
        self.state.end(&mut held, ended);
        let on_devices: Vec<DeviceLease> =
            leases.iter().filter_map(|lease| held.on_devices.remove(lease)).collect();
        drop(held);
        drop(on_devices);
    }

    /// Whether a lease of its own names a slab of a device.
    #[must_use]
    pub fn uses_on_device(&self, slab: u64) -> bool {
        let held = lock(&self.state.held);
        held.on_devices.values().any(|lease| lease.place.slab == slab)
    }

    /// Whether a lease of its own names a slab.
    #[must_use]
    pub fn uses(&self, slab: u64) -> bool {
        lock(&self.state.held).ledger.uses(slab)
    }
}

impl WorkerState {
    fn end(&self, held: &mut Held, ended: Vec<Lease>) {
        let places: Vec<Place> = ended.iter().map(|lease| lease.place).collect();
        held.ledger.remove(&places);
        self.all.change(|ledger| ledger.remove(&places));
        // The slots come free after they are no longer counted: what comes free is
        // granted at once.
        drop(ended);
    }

    fn status(&self) -> WorkerStatus {
        let mut on_devices = self.held_on_devices();
        let held = lock(&self.held);
        // Their numbers ascend.
        let oldest = held.leases.first_key_value().map(|(_, lease)| lease.since);
        let oldest_there = held.on_devices.first_key_value().map(|(_, lease)| lease.since);
        let oldest = oldest.into_iter().chain(oldest_there).min();
        let leased = held.on_devices.values();
        on_devices
            .extend(leased.filter_map(|it| Some((it.block.named_place()?, it.place.slot_bytes))));
        WorkerStatus {
            worker: self.name.clone(),
            leases: (held.leases.len() + held.on_devices.len()) as u64,
            device_bytes: on_devices.values().sum(),
            bytes: held.ledger.bytes(),
            direct_bytes: self.direct_bytes.load(Ordering::Relaxed),
            connected_seconds: self.since.elapsed().as_secs(),
            oldest_seconds: oldest.map(|since| since.elapsed().as_secs()),
        }
    }
}

impl Drop for WorkerState {
    fn drop(&mut self) {
        let mut held = std::mem::take(&mut *lock(&self.held));
        let ended = std::mem::take(&mut held.leases).into_values().collect();
        self.end(&mut held, ended);
        lock(&self.all.workers).remove(&self.number);
        // Its cells count no more, whatever the memory.
        drop(std::mem::take(&mut *lock(&self.direct)));
        self.all.free_what_nobody_reads();
    }
}

/// A number that another start of the daemon does not have.
fn epoch() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    // Never 0, which stands for none.
    RandomState::new().hash_one((now.as_nanos(), std::process::id())) | 1
}

/// Memory in pages, as many as a semaphore takes.
fn pages(bytes: u64) -> u32 {
    const MOST: u32 = u32::MAX >> 4;
    u32::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(MOST).min(MOST)
}

/// Every change under these locks is whole: there is nothing to repair.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
