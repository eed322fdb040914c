//! The levels in front of the origin.
//!
//! A read looks into host memory, and otherwise joins or starts the one fill of
//! its block: a task of its own that takes a slot, reads from the fastest lower
//! level or the origin into it, verifies, keeps, and answers everybody. Only the
//! origin can fail a read; a broken level is a miss.

mod config;
mod error;
mod fill;
mod flight;
mod guarded;
mod lanes;
mod origin;
mod pace;
mod ranges;
mod stage;
mod status;
mod verify;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tpad_manifest::BlockId;

pub use config::{DramConfig, FetchTuning, HierarchyConfig, home_bytes};
pub use error::{ReadError, StoreError};
pub use lanes::OriginLane;
pub use stage::{Claim, Staged};
pub use status::{LevelStatus, Lookups, StoreStatus};

use self::flight::{Boarding, Flight, Flights, Purpose, Stage};
use self::guarded::Guarded;
use self::lanes::Lanes;
use crate::dram::DramLevel;
use crate::gate::Gate;
use crate::level::{Health, Level};
use crate::{
    BlockBytes, BlockFetch, CacheClass, Medium, Origin, ReadOptions, StoreMetrics, Tasks, Urgency,
};

/// Blocks that are written to lower levels at once.
const LEVEL_WRITES: usize = 8;

/// The part of host memory that blocks on their way into lower levels may hold,
/// written or waiting for it; more are dropped.
const LEVEL_WRITE_SHARE: u64 = 8;

/// The part of host memory that blocks on their way to a home below it may hold.
const STAGE_SHARE: u64 = 16;

/// What slots are multiples of.
const PAGE_BYTES: u64 = 4096;

/// A block and where it was.
#[derive(Clone, Debug)]
pub struct Served {
    /// The image, verified.
    pub bytes: BlockBytes,
    /// Where it was.
    pub medium: Medium,
}

/// What forgetting a block came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    /// It is pinned, and stays.
    pub pinned: bool,
    /// What had it and has it no more.
    pub from: Vec<Medium>,
}

/// The levels in front of the origins.
///
/// Origins come with each read: models share the levels, and equal blocks.
pub struct Hierarchy {
    inner: Arc<Inner>,
}

struct Inner {
    dram: DramLevel,
    lower: Vec<Arc<Guarded>>,
    tuning: FetchTuning,
    metrics: StoreMetrics,
    flights: Flights,
    /// Slot bytes of fills in progress, within the headroom.
    fills: Arc<Gate>,
    /// Ranges in flight.
    ranges: Lanes,
    /// Digests being computed.
    digests: Arc<Gate>,
    level_writes: Arc<Semaphore>,
    /// Memory of blocks that are written or wait for it, in pages.
    level_write_pages: Arc<Semaphore>,
    most_level_write_pages: u32,
    /// Memory of blocks that are staged below host memory, in pages.
    stage_pages: Arc<Semaphore>,
    most_stage_pages: u32,
    waiting: AtomicUsize,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Hierarchy {
    /// A hierarchy over host memory and the `lower` levels, fastest first.
    ///
    /// # Errors
    /// When a bound is zero or the budgets exceed the capacity.
    pub fn new(
        config: HierarchyConfig,
        lower: Vec<Arc<dyn Level>>,
        metrics: StoreMetrics,
    ) -> Result<Arc<Self>, StoreError> {
        let HierarchyConfig { dram, fetch: tuning } = config;
        tuning.check()?;
        if dram.capacity_bytes == 0 {
            let (key, remedy) = ("levels.dram.capacity", "blocks need memory to be read into");
            return Err(StoreError::Bound { key, value: 0, remedy });
        }
        let dram = DramLevel::new(&dram, metrics.clone())?;
        let pages = pages_of(dram.arena().usage().capacity / LEVEL_WRITE_SHARE);
        let stage_pages = pages_of(dram.arena().usage().capacity / STAGE_SHARE);
        let guarded = |level| Guarded::new(level, tuning.level_patience, metrics.clone());
        let inner = Inner {
            lower: lower.into_iter().map(guarded).map(Arc::new).collect(),
            flights: Flights::default(),
            fills: Gate::new(dram.headroom()),
            ranges: Lanes::new(tuning.least_ranges, tuning.most_ranges, metrics.clone()),
            digests: Gate::new(tuning.concurrent_digests as u64),
            level_writes: Arc::new(Semaphore::new(LEVEL_WRITES)),
            level_write_pages: Arc::new(Semaphore::new(pages as usize)),
            most_level_write_pages: pages,
            stage_pages: Arc::new(Semaphore::new(stage_pages as usize)),
            most_stage_pages: stage_pages,
            waiting: AtomicUsize::new(0),
            tasks: Tasks::new(),
            stop: CancellationToken::new(),
            dram,
            tuning,
            metrics,
        };
        Ok(Arc::new(Self { inner: Arc::new(inner) }))
    }

    /// Reads a block from the fastest place that has it.
    ///
    /// Concurrent reads of a block share one fill, which outlives any of them:
    /// dropping the future or missing the deadline ends this caller's wait and
    /// nothing else. The fill waits for memory until the latest deadline of its
    /// callers, and once it has memory takes its own time, at most
    /// [`FetchTuning::max_fill_time`].
    ///
    /// # Errors
    /// When the origin fails, its bytes are not the block, or a bound is reached.
    pub async fn read(
        &self,
        origin: &Arc<dyn Origin>,
        fetch: &Arc<BlockFetch>,
        options: ReadOptions,
    ) -> Result<Served, ReadError> {
        let purpose = match options.urgency {
            Urgency::Demand => Purpose::Use,
            Urgency::Prefetch => Purpose::Guess,
        };
        let read = self.inner.read(origin, fetch, options, purpose).await;
        self.inner.metrics.read(read.as_ref().map(|_| ()).map_err(ReadError::kind));
        read
    }

    /// The fastest medium that holds the block now, without counting as a use.
    #[must_use]
    pub fn resident(&self, id: &BlockId) -> Option<Medium> {
        let inner = &self.inner;
        if inner.dram.contains(id) {
            return Some(Medium::Dram);
        }
        inner.lower.iter().find(|level| level.offers(id)).map(|level| level.medium())
    }

    /// Keeps a block that was read in host memory until it is unpinned as often as
    /// it was pinned. `false` when it does not lie there, or when there is no room
    /// among what is pinned: see [`DramLevel::pin`].
    #[must_use]
    pub fn pin(&self, id: &BlockId, class: &CacheClass, bytes: &BlockBytes) -> bool {
        self.inner.dram.pin(id, class, bytes)
    }

    /// Takes one pin back.
    pub fn unpin(&self, id: &BlockId) {
        self.inner.dram.unpin(id);
    }

    /// Has one level, or every one, forget a block. A pinned block stays
    /// everywhere; readers keep what they have.
    pub async fn evict(&self, id: &BlockId, level: Option<Medium>) -> Evicted {
        let inner = &self.inner;
        if inner.dram.is_pinned(id) {
            return Evicted { pinned: true, from: Vec::new() };
        }
        let mut from = Vec::new();
        let wanted = |medium| level.is_none_or(|level| level == medium);
        if wanted(Medium::Dram) && inner.dram.contains(id) {
            // Host memory does not fail; pinned in between, it stays.
            let _infallible = inner.dram.remove(id).await;
            if !inner.dram.contains(id) {
                from.push(Medium::Dram);
            }
        }
        for lower in inner.lower.iter().filter(|lower| wanted(lower.medium())) {
            if lower.offers(id) {
                lower.remove(id).await;
                if !lower.level().contains(id) {
                    from.push(lower.medium());
                }
            }
        }
        Evicted { pinned: false, from }
    }

    /// Whether this level has the block now, without counting as a use. `false` of
    /// a level that is left alone for a while.
    #[must_use]
    pub fn holds(&self, medium: Medium, id: &BlockId) -> bool {
        if medium == Medium::Dram {
            return self.inner.dram.contains(id);
        }
        self.inner.lower.iter().any(|level| level.medium() == medium && level.offers(id))
    }

    /// Whether this level has the block now, counted as a use so that what is no
    /// one's home goes before it.
    #[must_use]
    pub fn settled(&self, medium: Medium, id: &BlockId) -> bool {
        if medium == Medium::Dram {
            return self.inner.dram.settle(id);
        }
        self.inner.lower.iter().any(|level| level.medium() == medium && level.settles(id))
    }

    /// The host-memory level: its budgets can be changed, its blocks removed.
    #[must_use]
    pub fn dram(&self) -> &DramLevel {
        &self.inner.dram
    }

    /// What the store holds and does.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        let inner = &self.inner;
        let dram = LevelStatus {
            level: Medium::Dram,
            usage: inner.dram.usage(),
            health: Health::Ok,
            note: None,
            reader: None,
            lookups: inner.metrics.lookups(Medium::Dram),
        };
        let lower = inner.lower.iter().map(|level| LevelStatus {
            level: level.medium(),
            usage: level.level().usage(),
            health: level.health(),
            note: level.level().note(),
            reader: level.level().reader(),
            lookups: inner.metrics.lookups(level.medium()),
        });
        StoreStatus {
            levels: std::iter::once(dram).chain(lower).collect(),
            arena: inner.dram.arena().usage(),
            classes: inner.dram.classes(),
            origins: inner.ranges.status(),
            fills: inner.flights.len(),
            fills_waiting_for_memory: inner.dram.waiting(),
            reads_waiting: inner.waiting.load(Ordering::Relaxed),
        }
    }

    /// Refuses new fills, ends those in progress, and waits for every task and for
    /// what lower levels have in hand. Blocks in host memory are served on.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        for level in &self.inner.lower {
            level.level().close().await;
        }
    }
}

impl Inner {
    async fn read(
        self: &Arc<Self>,
        origin: &Arc<dyn Origin>,
        fetch: &Arc<BlockFetch>,
        options: ReadOptions,
        purpose: Purpose,
    ) -> Result<Served, ReadError> {
        if let Some(served) = self.in_place(fetch) {
            return Ok(served);
        }
        self.metrics.level_missed(Medium::Dram);
        loop {
            if self.stop.is_cancelled() {
                return Err(ReadError::Stopping);
            }
            if options.deadline <= Instant::now() {
                return Err(ReadError::Deadline { id: fetch.id });
            }
            let _waiting = self.wait_in_line()?;
            let limit = match options.urgency {
                Urgency::Demand => self.tuning.max_fills,
                Urgency::Prefetch => self.tuning.max_fills.div_ceil(2),
            };
            let landed = || self.in_place(fetch);
            let boarding = self.flights.board(origin, fetch, options, purpose, limit, landed);
            let (flight, joined) = match boarding {
                Boarding::Landed(served) => return Ok(served),
                Boarding::Full(count) => {
                    return Err(ReadError::Busy { count, what: "blocks are being filled" });
                }
                Boarding::Joined(flight) => {
                    self.metrics.read_joined();
                    (flight, true)
                }
                Boarding::Lead(flight) => {
                    let lead = Arc::clone(self).lead(Arc::clone(&flight));
                    self.tasks.spawn(lead);
                    (flight, false)
                }
            };
            let result = match timeout_at(options.deadline, flight.landed()).await {
                Ok(result) => result,
                Err(_elapsed) if flight.stage() == Stage::Room => {
                    return Err(self.no_room(fetch.id, fetch.bytes));
                }
                Err(_elapsed) => return Err(ReadError::Deadline { id: fetch.id }),
            };
            // Someone else's copy of the block failed: ours may be there.
            if result.is_err() && joined && !flight.reads_the_same(&**origin, fetch) {
                continue;
            }
            return result;
        }
    }

    /// The block where it lies, if readers may share it there.
    fn in_place(&self, fetch: &BlockFetch) -> Option<Served> {
        let (bytes, medium) = match self.dram.lookup(&fetch.id, &fetch.class) {
            Some(bytes) => (bytes, Medium::Dram),
            None => self.lower.iter().find_map(|level| level.in_place(&fetch.id))?,
        };
        self.metrics.level_hit(medium, bytes.len() as u64);
        Some(Served { bytes, medium })
    }

    /// Leads a flight to its end.
    async fn lead(self: Arc<Self>, flight: Arc<Flight>) {
        let landing = Landing { inner: &self, flight: &flight };
        loop {
            let tried_as = flight.wishes().urgency;
            let result = tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(ReadError::Stopping),
                result = self.fill(&flight) => result,
            };
            if self.flights.land(&flight, result, tried_as) {
                break;
            }
        }
        std::mem::forget(landing);
    }

    fn dram_bytes(&self) -> u64 {
        self.dram.usage().bytes
    }

    fn wait_in_line(&self) -> Result<Waiting<'_>, ReadError> {
        let count = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        if count >= self.tuning.max_waiting {
            return Err(ReadError::Busy { count, what: "reads wait for blocks" });
        }
        Ok(waiting)
    }
}

/// Memory in pages, as many as a semaphore takes.
fn pages_of(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4)
}

/// Ends a flight whose leader did not: by a panic, or with its runtime.
struct Landing<'a> {
    inner: &'a Inner,
    flight: &'a Flight,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let lost = Err(ReadError::Lost { id: self.flight.fetch.id });
        self.inner.flights.land(self.flight, lost, Urgency::Demand);
    }
}

/// A read that waits, counted.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Hierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hierarchy").field("status", &self.status()).finish_non_exhaustive()
    }
}
