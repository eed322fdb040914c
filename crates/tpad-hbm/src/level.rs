//! The level: several devices, each with its memory and its budgets.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::timeout_at;
use tpad_cuda::{Copier, DeviceFacts, DeviceName, Driver, DriverKind};
use tpad_handoff::{Named, Place, Workers};
use tpad_manifest::BlockId;
use tpad_store::{
    BlockBytes, CacheClass, Health, LevelUsage, ReadOptions, Readers, SlabObserver, Tasks, Urgency,
};

use crate::budget::Budgets;
use crate::flights::{Boarding, Outcome};
use crate::keep::Keep;
use crate::lane::{Broken, Filling, Lane};
use crate::pool::{Common, Pool};
use crate::{
    DeviceBlock, DeviceId, HbmConfig, HbmDeviceStatus, HbmError, HbmMetrics, HbmStatus, HostMemory,
};

/// GPU memory as a level.
#[derive(Debug)]
pub struct HbmLevel {
    driver: Arc<dyn Driver>,
    /// Each with what copies to it.
    lanes: Vec<(Arc<Lane>, Arc<Copier>)>,
    common: Arc<Common>,
    /// Who may read its blocks by directories.
    workers: Arc<Workers>,
    broken: Arc<Broken>,
    metrics: HbmMetrics,
    tasks: Tasks,
}

impl HbmLevel {
    /// Opens the devices of `config`; takes none of their memory yet but for a context
    /// each. Its tasks run on the runtime that this is called in.
    ///
    /// # Errors
    /// When a device cannot be opened or is named twice, has less memory than it is to
    /// give, or the budgets exceed a capacity.
    pub fn open(
        driver: &Arc<dyn Driver>,
        config: &HbmConfig,
        metrics: HbmMetrics,
    ) -> Result<Self, HbmError> {
        let (common, broken, workers) = (Common::new(), Arc::<Broken>::default(), Workers::new());
        let mut lanes: Vec<(Arc<Lane>, Arc<Copier>)> = Vec::new();
        for budget in &config.devices {
            let named = || budget.device.clone();
            let failed = |source| HbmError::Open { device: named(), source };
            let device = driver.open(&budget.device).map_err(failed)?;
            let facts = device.facts();
            let (capacity, total) = (budget.capacity_bytes, facts.total_bytes);
            if lanes.iter().any(|(lane, _)| lane.id.0 == facts.index) {
                return Err(HbmError::Twice { device: named() });
            }
            if !facts.exports {
                return Err(failed(tpad_cuda::CudaError::NoExport { index: facts.index }));
            }
            if capacity > total {
                return Err(HbmError::Capacity { device: named(), capacity, total });
            }
            let budgets = Budgets::of(capacity, &config.class_budgets)?;
            let pool = Pool::new(Arc::clone(&device), capacity, &common, &workers);
            let keep = Keep::new(budgets, metrics.clone(), pool.readers());
            let copier = Copier::new(&device, config.streams).map_err(failed)?;
            lanes.push((Lane::new(device, pool, keep, &broken, &metrics), Arc::new(copier)));
        }
        broken.concerns(lanes.iter().map(|(lane, _)| lane));
        let (driver, tasks) = (Arc::clone(driver), Tasks::new());
        Ok(Self { driver, lanes, common, workers, broken, metrics, tasks })
    }

    /// What drives its devices.
    #[must_use]
    pub fn kind(&self) -> DriverKind {
        self.driver.kind()
    }

    /// Its devices.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceFacts> {
        self.lanes().map(|lane| lane.device.facts())
    }

    /// The device of this name, if the level has it. Workers name it by its identity.
    #[must_use]
    pub fn device(&self, name: &DeviceName) -> Option<DeviceId> {
        self.devices().find(|facts| name.names(facts)).map(|facts| DeviceId(facts.index))
    }

    /// What registers host memory with the driver, for
    /// [`Arena::observe`](tpad_store::Arena::observe). `None` without devices.
    #[must_use]
    pub fn host_memory(&self) -> Option<Arc<dyn SlabObserver>> {
        let lane = self.lanes().next()?;
        let host = HostMemory::new(Arc::clone(&lane.device), self.metrics.clone());
        Some(Arc::new(host))
    }

    /// The block, if it is on the device. Counts as a use, by somebody who comes for it with
    /// [`HbmLevel::claim`] when the rest of what he wants is there. Does not block.
    #[must_use]
    pub fn get(&self, id: &BlockId, device: DeviceId) -> Option<DeviceBlock> {
        let lane = self.lane(device).filter(|_| self.works())?;
        let found = lane.keep.want(id);
        self.metrics.looked_up(device, found.is_some());
        found
    }

    /// The block, if it is on the device, for whoever found it there or had it brought just
    /// now: that was the use, and it is not counted again.
    #[must_use]
    pub fn claim(&self, id: &BlockId, device: DeviceId) -> Option<DeviceBlock> {
        let lane = self.lane(device).filter(|_| self.works())?;
        lane.keep.claim(id)
    }

    /// A worker used the block without a word, so many times.
    pub fn used(&self, id: &BlockId, device: DeviceId, times: u32) {
        if let Some(lane) = self.lane(device) {
            lane.keep.used(id, times);
        }
    }

    /// Somebody is likely to use the block next: a prefetch of it takes the place of what was
    /// used least, as if it had been used, but for half as much. Without that a block that
    /// had to go comes back by a demand alone: what stayed was used more.
    pub fn expect(&self, id: &BlockId, device: DeviceId) {
        if let Some(lane) = self.lane(device) {
            lane.keep.expect(id);
        }
    }

    /// Who may read its blocks by directories.
    #[must_use]
    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// Who reads blocks of the device by directories; `None` if the level does not have it.
    #[must_use]
    pub fn readers(&self, device: DeviceId) -> Option<&Arc<Readers>> {
        Some(self.lane(device)?.pool.readers())
    }

    /// Frees slots that nobody but workers had, and none has any more. To be called now
    /// and then: workers do not tell.
    pub fn free_what_nobody_reads(&self) {
        self.lanes().for_each(|lane| lane.pool.free_what_nobody_reads());
    }

    /// What the slots take that are named here, of those of the level's devices.
    #[must_use]
    pub fn bytes_of(&self, named: &Named) -> BTreeMap<Place, u64> {
        let places = named.places().iter();
        let bytes = |place: &Place| {
            let of = |lane: &Arc<Lane>| lane.pool.slot_bytes(*place);
            Some((*place, self.lanes().find_map(of)?))
        };
        places.filter_map(bytes).collect()
    }

    /// Whether the block is on the device. Without side effects.
    #[must_use]
    pub fn contains(&self, id: &BlockId, device: DeviceId) -> bool {
        self.works() && self.lane(device).is_some_and(|lane| lane.keep.contains(id))
    }

    /// The devices that have the block. Without side effects.
    #[must_use]
    pub fn holders(&self, id: &BlockId) -> Vec<DeviceId> {
        let holders = self.lanes().filter(|lane| self.contains(id, lane.id));
        holders.map(|lane| lane.id).collect()
    }

    /// Copies a verified block from host memory to the device, unless it is there, and
    /// returns it when the host has seen the copy complete. `None` if it was refused: the
    /// level is off, the policy would not let the block stay, or there is no room. Blocks
    /// that somebody holds are never in anyone's way for longer than they are held.
    ///
    /// A demand takes the place of what its class used least of late, and waits for a slot
    /// and for the copy until its deadline. A prefetch takes the place of what is used
    /// less, waits for the copy alone, and is refused where it would have to wait
    /// for a slot, or the device has no memory for what the budgets allow. It is copied
    /// in pieces, while no demand's copy is under way.
    ///
    /// Whoever asks at once for the same block gets the same copy; a demand hurries a
    /// prefetch's. Dropped, the future leaves it to the others. When nobody waits any
    /// more, a fill that waits for room is given up within a second, and a prefetch
    /// between two pieces; a demand's copy that has begun is finished by the level, and
    /// its source is kept until it is over.
    ///
    /// # Errors
    /// When the level has no such device, or the driver fails. After a sticky error the
    /// level is off.
    pub async fn promote(
        &self,
        id: &BlockId,
        class: &CacheClass,
        bytes: &BlockBytes,
        device: DeviceId,
        options: ReadOptions,
    ) -> Result<Option<DeviceBlock>, HbmError> {
        let of = |(lane, _): &&(Arc<Lane>, Arc<Copier>)| lane.id == device;
        let found = self.lanes.iter().find(of).ok_or(HbmError::NoDevice { device })?;
        let (lane, copier) = found;
        loop {
            if !self.works() {
                return Ok(None);
            }
            let (flight, leads) = match lane.board(id, options) {
                Boarding::Landed(block) => return Ok(Some(block)),
                Boarding::Joined(flight) => {
                    if options.urgency == Urgency::Demand {
                        flight.errand.hurry();
                    }
                    (flight, false)
                }
                Boarding::Lead(lead, flight) => {
                    let filling = Filling::new(lane, *id, lead, self.tasks.token());
                    let (class, bytes) = (class.clone(), bytes.clone());
                    let copier = Arc::clone(copier);
                    // In order: whoever asks for two blocks waits for the first of them first.
                    self.tasks.begin(async move {
                        filling.run(&copier, class, bytes, options).await;
                    });
                    (flight, true)
                }
            };
            let mut outcome = flight.outcome.clone();
            let seen = timeout_at(options.deadline, outcome.wait_for(Option::is_some)).await;
            // Too late; or, without a word, the runtime is shutting down.
            let Ok(Ok(outcome)) = seen else { return Ok(None) };
            match outcome.clone() {
                // Refused as somebody's who would wait less.
                Some(Outcome::Filled(Ok(None))) if !leads && flight.is_outwaited_by(options) => {}
                // By all who waited before this one came.
                Some(Outcome::GivenUp) => {}
                Some(Outcome::Filled(filled)) => {
                    if !leads && options.urgency == Urgency::Demand {
                        // Whoever leads was counted when the room was made.
                        lane.keep.want(id);
                    }
                    return filled;
                }
                None => return Ok(None),
            }
        }
    }

    /// Forgets the block on the device; whether it was there. Who holds it keeps it.
    pub fn remove(&self, id: &BlockId, device: DeviceId) -> bool {
        self.lane(device).is_some_and(|lane| lane.keep.remove(id))
    }

    /// What blocks of these classes were used until now does not count any more: they were
    /// of a model that is served no more.
    pub fn forget_uses(&self, classes: &[CacheClass]) {
        self.lanes().for_each(|lane| lane.keep.forget_uses(|class| classes.contains(class)));
    }

    /// Changes what each class may keep on each device; what does not fit is given up.
    ///
    /// # Errors
    /// When the budgets exceed a capacity; nothing changes then.
    pub fn set_budgets(&self, classes: &BTreeMap<String, u64>) -> Result<(), HbmError> {
        let budgets = self.lanes().map(|lane| {
            let budgets = Budgets::of(lane.pool.usage().capacity, classes)?;
            Ok((lane, budgets))
        });
        let budgets: Vec<(&Arc<Lane>, Budgets)> = budgets.collect::<Result<_, HbmError>>()?;
        for (lane, budgets) in budgets {
            lane.keep.set_budgets(budgets);
        }
        Ok(())
    }

    /// What is kept on the device; nothing if the level does not have it.
    #[must_use]
    pub fn usage(&self, device: DeviceId) -> LevelUsage {
        self.lane(device).map_or_else(LevelUsage::default, |lane| lane.keep.usage())
    }

    /// The most that blocks take together on the device, where slots are of this size;
    /// nothing if the level does not have it.
    #[must_use]
    pub fn most_bytes(&self, device: DeviceId, slot_bytes: u64) -> u64 {
        self.lane(device).map_or(0, |lane| lane.keep.capacity_in_slots(slot_bytes))
    }

    /// What blocks of a class take on the device, and may take.
    #[must_use]
    pub fn kept_of(&self, class: &CacheClass, device: DeviceId) -> LevelUsage {
        self.lane(device).map_or_else(LevelUsage::default, |lane| lane.keep.kept_of(class))
    }

    /// Whether it works. Once broken, it stays so until the process is restarted.
    #[must_use]
    pub fn health(&self) -> Health {
        self.broken.why().map_or(Health::Ok, |why| Health::Broken(why.to_owned()))
    }

    /// Completes when it is broken.
    pub async fn broke(&self) {
        self.broken.broke().await;
    }

    /// Tells when a slab that a worker has mapped is wanted for something else: see
    /// [`SharedDeviceSlab::wanted_since`](crate::SharedDeviceSlab::wanted_since).
    #[must_use]
    pub fn watch_wanted(&self) -> watch::Receiver<u64> {
        self.common.watch_wanted()
    }

    /// What an operator sees. Asks the driver, which takes some microseconds.
    #[must_use]
    pub fn status(&self) -> HbmStatus {
        let device = |lane: &Arc<Lane>| {
            let (facts, memory, kept) = (lane.device.facts(), lane.pool.usage(), lane.keep.usage());
            let free = if self.works() { lane.device.memory().ok() } else { None };
            HbmDeviceStatus {
                index: lane.id,
                uuid: facts.uuid,
                name: facts.name.clone(),
                capacity_bytes: memory.capacity,
                mapped_bytes: memory.mapped,
                held_bytes: memory.held,
                // More is kept where slots are larger than the headroom.
                budget_bytes: kept.capacity.max(kept.bytes),
                kept_bytes: kept.bytes,
                blocks: kept.blocks,
                classes: lane.keep.classes(),
                total_bytes: facts.total_bytes,
                free_bytes: free.map(|free| free.free_bytes),
            }
        };
        HbmStatus {
            mode: self.kind().into(),
            driver: self.driver.version(),
            health: self.health(),
            devices: self.lanes().map(device).collect(),
        }
    }

    /// Waits for the copies that are under way. Fills that wait for room are refused, from
    /// now on. Who fills afterwards is not waited for.
    pub async fn close(&self) {
        self.lanes().for_each(|lane| lane.close());
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.lanes.iter().map(|(lane, _)| lane)
    }

    fn works(&self) -> bool {
        self.broken.why().is_none()
    }

    fn lane(&self, device: DeviceId) -> Option<&Arc<Lane>> {
        self.lanes().find(|lane| lane.id == device)
    }
}
