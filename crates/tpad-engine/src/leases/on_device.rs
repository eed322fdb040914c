//! Blocks on a device and under lease there.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout_at};
use tpad_hbm::{DeviceBlock, DeviceId, DevicePlace, HbmLevel};
use tpad_manifest::{BlockKey, BlockRecord};
use tpad_store::{BlockFetch, Medium, ReadOptions, slot_bytes};

use super::{WORKER_LEASES, Worker, lock};
use crate::{EngineError, Generation, Memory};

/// Blocks on their way to a device at a time: twice what keeps a bus busy with blocks of
/// 1 MiB.
const FILLS: usize = 64;

/// A block that was leased on a device.
#[derive(Debug)]
pub struct DeviceLeased {
    /// The lease's number.
    pub lease: u64,
    /// Where the block lies.
    pub place: DevicePlace,
    /// What was asked for.
    pub key: BlockKey,
    /// What it is.
    pub record: BlockRecord,
    /// Where it was found.
    pub medium: Medium,
    /// Its memory.
    pub block: DeviceBlock,
    /// Its number in the generation's directory, for workers that want it.
    pub ordinal: Option<u32>,
}

/// What became of each key.
pub type DeviceAcquired = Vec<Result<DeviceLeased, EngineError>>;

/// A block that cannot be given up.
#[derive(Debug)]
pub(super) struct DeviceLease {
    pub(super) place: DevicePlace,
    pub(super) since: Instant,
    /// What keeps it.
    pub(super) block: DeviceBlock,
}

/// Who waits for a device.
#[derive(Debug)]
pub(super) struct DeviceTurns {
    /// A batch that holds blocks of it while it waits for others has the turn.
    turn: Mutex<()>,
    /// Bounds the blocks in host memory that wait for it.
    fills: Semaphore,
}

impl Default for DeviceTurns {
    fn default() -> Self {
        Self { turn: Mutex::new(()), fills: Semaphore::new(FILLS) }
    }
}

/// What is asked for, and where.
struct Target<'a> {
    generation: &'a Arc<Generation>,
    level: &'a Arc<HbmLevel>,
    device: DeviceId,
    deadline: Instant,
}

/// A block that is there.
struct Found {
    record: BlockRecord,
    medium: Medium,
    block: DeviceBlock,
}

impl Worker {
    /// Leases blocks of a generation on the device of this name, each copied there if it
    /// is not there.
    ///
    /// Blocks are copied and let go of first, since most of them stay: nothing is held
    /// while they are waited for. Those that the device did not keep are copied once more
    /// and held; one batch at a time does that, so no two can wait for each other. At the
    /// deadline those that are there get their leases, and the others their errors. What
    /// leases on a device may hold is bounded by what the level may take of it.
    ///
    /// # Errors
    /// When there is no such device, or the worker would hold too many leases: then there
    /// are none.
    pub async fn acquire_on(
        &self,
        device: &str,
        generation: &Arc<Generation>,
        keys: &[BlockKey],
        deadline: Instant,
    ) -> Result<DeviceAcquired, EngineError> {
        let memory = generation.device_memory();
        let Some((level, id)) = memory.device(device) else {
            return Err(EngineError::NoDevice { device: device.to_owned(), reason: why(memory) });
        };
        // A worker asks for what it lacks: something else may go for it, and is to be what
        // nobody uses.
        self.state.all.learn_uses();
        let turns = self.state.all.turns(id);
        let target = Target { generation, level, device: id, deadline };
        let mut found: Vec<Option<Result<Found, EngineError>>> =
            keys.iter().map(|_| None).collect();
        // Each is let go of as it comes.
        let through = keys.iter().map(|key| async {
            let brought = target.bring(key, Some(&turns.fills)).await;
            brought.map(|found| found.medium)
        });
        let through = join_all(through).await;
        let mut media = Vec::with_capacity(keys.len());
        for (found, result) in found.iter_mut().zip(through) {
            match result {
                Ok(medium) => media.push(Some(medium)),
                Err(error) => {
                    media.push(None);
                    *found = Some(Err(error));
                }
            }
        }
        self.look(&target, keys, &mut found).await;
        if found.iter().any(Option::is_none) {
            target.refuse_too_many(keys, &mut found).await;
        }
        if found.iter().any(Option::is_none) {
            found.iter_mut().filter(|it| matches!(it, Some(Ok(_)))).for_each(|it| *it = None);
            let turn = timeout_at(deadline, turns.turn.lock()).await;
            self.look(&target, keys, &mut found).await;
            if turn.is_ok() {
                let missing = (0..keys.len()).filter(|n| found[*n].is_none());
                let missing: Vec<usize> = missing.collect();
                let brought = missing.iter().map(|n| target.bring(&keys[*n], None));
                // Without permits: who has the turn waits for nobody who has one.
                let brought = join_all(brought).await;
                for (n, result) in missing.into_iter().zip(brought) {
                    if let Ok(found) = &result {
                        // Held from here on: nobody comes for it again.
                        let _same = target.level.claim(&found.record.id, target.device);
                    }
                    found[n] = Some(result);
                }
            }
        }
        for (found, medium) in found.iter_mut().zip(media) {
            // Where it was before this call.
            if let (Some(Ok(found)), Some(medium)) = (found, medium) {
                found.medium = medium;
            }
        }
        let mut acquired = self.lease_on(generation, keys, found)?;
        for leased in acquired.iter_mut().flatten() {
            let named = (&leased.key, &leased.record.id);
            let memory = Memory::Device(id);
            leased.ordinal = self.state.publish(generation, memory, named, &leased.block);
        }
        Ok(acquired)
    }

    /// Takes what is on the device now, of what is not known yet.
    async fn look(
        &self,
        target: &Target<'_>,
        keys: &[BlockKey],
        found: &mut [Option<Result<Found, EngineError>>],
    ) {
        for (key, found) in keys.iter().zip(found) {
            if found.is_none() {
                // Its segment was read just now.
                let record = target.generation.record(key, target.deadline).await;
                *found = record.map(|record| target.claim(record)).transpose();
            }
        }
    }

    fn lease_on(
        &self,
        generation: &Generation,
        keys: &[BlockKey],
        found: Vec<Option<Result<Found, EngineError>>>,
    ) -> Result<DeviceAcquired, EngineError> {
        let all = &self.state.all;
        let mut held = lock(&self.state.held);
        let leases = held.leases.len() + held.on_devices.len();
        if leases + keys.len() > WORKER_LEASES {
            return Err(EngineError::TooManyLeases { limit: WORKER_LEASES });
        }
        let since = Instant::now();
        let mut acquired = Vec::with_capacity(keys.len());
        for (key, found) in keys.iter().zip(found) {
            let late = || EngineError::Deadline { what: format!("{key} was not on the device") };
            acquired.push(found.unwrap_or_else(|| Err(late())).map(|found| {
                let Found { record, medium, block } = found;
                let lease = all.next_lease.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let place = block.place();
                let kept = DeviceLease { place, since, block: block.clone() };
                held.on_devices.insert(lease, kept);
                generation.count_found(key, medium, block.bytes());
                let key = key.clone();
                DeviceLeased { lease, place, key, record, medium, block, ordinal: None }
            }));
        }
        Ok(acquired)
    }
}

impl Target<'_> {
    /// Refuses what is missing of a batch that the device would not hold together, however
    /// long it waited.
    async fn refuse_too_many(
        &self,
        keys: &[BlockKey],
        found: &mut [Option<Result<Found, EngineError>>],
    ) {
        let mut sizes = BTreeMap::new();
        for key in keys {
            if let Ok(record) = self.generation.record(key, self.deadline).await
                && let Ok(fetch) = BlockFetch::of(&record, self.generation.class(key))
            {
                sizes.insert(record.id, slot_bytes(fetch.bytes).unwrap_or(u64::MAX));
            }
        }
        let wanted = sizes.values().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        let largest = sizes.values().copied().max().unwrap_or(0);
        if wanted <= self.level.most_bytes(self.device, largest) {
            return;
        }
        for (key, found) in keys.iter().zip(found).filter(|(_, found)| found.is_none()) {
            let (key, device) = (key.clone(), self.device.0);
            *found = Some(Err(EngineError::DeviceFull { key, device }));
        }
    }

    fn get(&self, record: BlockRecord) -> Option<Found> {
        let block = self.level.get(&record.id, self.device)?;
        Some(Found { record, medium: Medium::Hbm, block })
    }

    /// The block, brought by this batch.
    fn claim(&self, record: BlockRecord) -> Option<Found> {
        let block = self.level.claim(&record.id, self.device)?;
        Some(Found { record, medium: Medium::Hbm, block })
    }

    /// The block on the device, copied there if it is not.
    async fn bring(&self, key: &BlockKey, fills: Option<&Semaphore>) -> Result<Found, EngineError> {
        let record = self.generation.record(key, self.deadline).await?;
        if let Some(found) = self.get(record) {
            return Ok(found);
        }
        // Before host memory is taken for it, which waits with it for the device.
        let mut _permit = None;
        if let Some(fills) = fills {
            let permit = timeout_at(self.deadline, fills.acquire()).await;
            let late = || EngineError::Deadline { what: format!("{key} waited for the device") };
            // The semaphore is never closed.
            _permit = Some(permit.ok().and_then(Result::ok).ok_or_else(late)?);
        }
        let options = ReadOptions::demand(self.deadline);
        let (record, class, served) = self.generation.fetch(key, options).await?;
        let (id, bytes, medium) = (record.id, served.bytes, served.medium);
        let promoted = self.level.promote(&id, &class, &bytes, self.device, options).await;
        match promoted {
            Ok(Some(block)) => Ok(Found { record, medium, block }),
            Ok(None) => Err(EngineError::DeviceFull { key: key.clone(), device: self.device.0 }),
            Err(source) => Err(EngineError::Device { key: key.clone(), source }),
        }
    }
}

/// What is wrong with a device that an engine does not have.
pub(super) fn why(memory: &crate::DeviceMemory) -> String {
    match memory {
        crate::DeviceMemory::Off(reason) => format!("GPU memory is off: {reason}"),
        crate::DeviceMemory::On(level) => {
            let there: Vec<String> = level.devices().map(|facts| facts.uuid.to_string()).collect();
            format!("this daemon has {}", there.join(", "))
        }
    }
}
