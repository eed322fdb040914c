//! One device of the level: its memory, what stays there, and how blocks get there.

mod filling;
mod room;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::{Notify, Semaphore};
use tpad_cuda::{CudaError, Device};
use tpad_manifest::BlockId;
use tpad_store::{ReadOptions, Urgency};

pub(crate) use self::filling::Filling;
use crate::flights::{Boarding, Flights};
use crate::keep::Keep;
use crate::pool::Pool;
use crate::{DeviceId, HbmMetrics};

/// Fills of one device that are under way or wait for a slot: more than keep the bus
/// busy, fewer than the copier takes.
const FILLS: usize = 256;
/// The same of those that nobody waits for: they take no demand's turn, and few slots that
/// no demand can have.
const GUESSES: usize = 128;

/// One device of the level.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) id: DeviceId,
    pub(crate) device: Arc<dyn Device>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) keep: Keep,
    pub(crate) broken: Arc<Broken>,
    pub(crate) metrics: HbmMetrics,
    flights: Flights,
    fills: Arc<Semaphore>,
    guesses: Arc<Semaphore>,
    /// Nothing waits for room any more.
    closing: AtomicBool,
}

/// Whether a sticky error has turned the level off, and which.
#[derive(Debug, Default)]
pub(crate) struct Broken {
    why: OnceLock<String>,
    told: Notify,
    lanes: OnceLock<Vec<Weak<Lane>>>,
}

impl Broken {
    pub(crate) fn why(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }

    /// Completes when there is a reason.
    pub(crate) async fn broke(&self) {
        let told = self.told.notified();
        tokio::pin!(told);
        // What is told after this is heard.
        told.as_mut().enable();
        if self.why().is_none() {
            told.await;
        }
    }

    /// What it turns off: said once, before the first fill.
    pub(crate) fn concerns<'a>(&self, lanes: impl Iterator<Item = &'a Arc<Lane>>) {
        let _once = self.lanes.set(lanes.map(Arc::downgrade).collect());
    }

    /// Nothing is kept on any device any more, and no worker finds anything.
    fn empty(&self) {
        for lane in self.lanes.get().into_iter().flatten().filter_map(Weak::upgrade) {
            lane.pool.readers().set_closed(true);
            lane.keep.clear();
        }
    }
}

impl Lane {
    pub(crate) fn new(
        device: Arc<dyn Device>,
        pool: Arc<Pool>,
        keep: Keep,
        broken: &Arc<Broken>,
        metrics: &HbmMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: pool.device_id(),
            device,
            pool,
            keep,
            broken: Arc::clone(broken),
            metrics: metrics.clone(),
            flights: Flights::default(),
            fills: Arc::new(Semaphore::new(FILLS)),
            guesses: Arc::new(Semaphore::new(GUESSES)),
            closing: AtomicBool::new(false),
        })
    }

    pub(crate) fn board(&self, id: &BlockId, options: ReadOptions) -> Boarding {
        self.flights.board(id, options, || match options.urgency {
            Urgency::Demand => self.keep.want(id),
            Urgency::Prefetch => self.keep.peek(id),
        })
    }

    /// Refuses fills that wait for room, from now on.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.pool.nudge();
    }

    /// A sticky error turns the level off.
    fn failed(&self, error: &CudaError) {
        if !error.is_sticky() {
            tracing::warn!(device = %self.id, %error, "a block was not copied to the GPU");
            return;
        }
        if self.broken.why.set(format!("device {}: {error}", self.id)).is_ok() {
            tracing::error!(device = %self.id, %error, "GPU memory is off until restart");
            self.broken.told.notify_waiters();
            self.metrics.broke();
        }
    }
}
