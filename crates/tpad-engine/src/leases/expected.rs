//! Blocks on their way to devices that nobody waits for: those that a worker is likely to
//! ask for next, and those that are at home there.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{StreamExt as _, iter};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tpad_hbm::{DeviceId, HbmLevel};
use tpad_manifest::{BlockKey, BlockRecord};
use tpad_store::{BlockBytes, BlockFetch, CacheClass, ReadOptions, Urgency};

use super::on_device::why;
use super::{Worker, lock};
use crate::{EngineError, Generation};

/// Of what a worker expects, so many blocks are read or copied at a time.
const AT_ONCE: usize = 16;

/// A guess that has not come by then is of no use any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a worker does not expect any more is given up so much later: the call by which it
/// asks for one of them comes right before it says what it expects next, and is to find the
/// copy that is under way. A copy that is of no use meanwhile delays none that is.
const GRACE: Duration = Duration::from_millis(5);

/// What brings the blocks that a worker expects, if anything does. Dropped, what has not
/// come is given up.
#[derive(Debug, Default)]
pub(super) struct Expected(Option<AbortHandle>);

impl Expected {
    #[cfg(test)]
    pub(super) fn handle(&self) -> Option<AbortHandle> {
        self.0.clone()
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.0.as_ref().is_some_and(|task| !task.is_finished())
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// What a worker expects, and what it expected before as long as that is not given up.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    pub(super) current: Expected,
    before: Expected,
}

impl Worker {
    /// Has blocks of a generation copied to the device of this name, those that the worker
    /// is likely to ask for next: in their order, after all that somebody waits for, and
    /// into room that nothing worth more is in. None is leased. What it expected before is
    /// given up a little later, and all of it when the worker is gone. A device that is not
    /// there has none.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn expect_on(&self, device: &str, generation: &Arc<Generation>, keys: Vec<BlockKey>) {
        self.expect_no_more();
        if keys.is_empty() {
            return;
        }
        let memory = generation.device_memory();
        let Some((level, id)) = memory.device(device) else {
            tracing::debug!(device, why = why(memory), "a worker expects blocks on no device");
            return;
        };
        // Something else may go for them, and is to be what nobody uses.
        self.state.all.learn_uses();
        let task = tokio::spawn(bring(Arc::clone(generation), Arc::clone(level), id, keys));
        lock(&self.state.expected).current = Expected(Some(task.abort_handle()));
    }

    /// Gives up what the worker expects a little later, as far as it has not come by then; what
    /// it expected before that, at once: so there are two at most, however often it is told.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn expect_no_more(&self) {
        let mut expected = lock(&self.state.expected);
        let current = std::mem::take(&mut expected.current);
        if !current.is_under_way() {
            return;
        }
        let ends = current.0.clone();
        let before = std::mem::replace(&mut expected.before, current);
        drop(expected);
        drop(before);
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            if let Some(task) = ends {
                task.abort();
            }
        });
    }

    /// Gives up what the worker expects at once.
    pub fn expect_nothing(&self) {
        let expected = std::mem::take(&mut *lock(&self.state.expected));
        drop(expected);
    }
}

/// Brings blocks to a device, in their order.
async fn bring(
    generation: Arc<Generation>,
    level: Arc<HbmLevel>,
    device: DeviceId,
    keys: Vec<BlockKey>,
) {
    let deadline = Instant::now() + PATIENCE;
    let (generation, level) = (&generation, &level);
    let brought = iter(keys).map(|key| async move {
        if let Ok(record) = generation.record(&key, deadline).await {
            level.expect(&record.id, device);
        }
        if let Err(error) = generation.promote_to(level, &key, vec![device], deadline).await {
            tracing::debug!(%error, "a block that a worker expects does not come");
        }
    });
    brought.buffer_unordered(AT_ONCE).collect::<()>().await;
}

impl Generation {
    /// Copies a block to each device of the level that does not have it, as far as the
    /// level takes it: it is at home there.
    pub(crate) async fn promote(
        &self,
        level: &Arc<HbmLevel>,
        key: &BlockKey,
        deadline: Instant,
    ) -> Result<bool, EngineError> {
        self.promote_to(level, key, crate::device::ids(level).collect(), deadline).await
    }

    /// The same for some of the devices.
    async fn promote_to(
        &self,
        level: &Arc<HbmLevel>,
        key: &BlockKey,
        mut devices: Vec<DeviceId>,
        deadline: Instant,
    ) -> Result<bool, EngineError> {
        let record = self.record(key, deadline).await?;
        let class = self.class(key);
        devices.retain(|device| !level.contains(&record.id, *device));
        if devices.is_empty() {
            return Ok(true);
        }
        let served = self.read_ahead(key, &record, &class, deadline).await?;
        // Nobody waits for it: it takes no place of what is used, and waits for none.
        let options = ReadOptions { deadline, urgency: Urgency::Prefetch };
        let copies = devices.into_iter().map(|device| {
            let (class, served, id) = (&class, &served, &record.id);
            async move { level.promote(id, class, served, device, options).await }
        });
        let mut all = true;
        for promoted in join_all(copies).await {
            let promoted =
                promoted.map_err(|source| EngineError::Device { key: key.clone(), source })?;
            all &= promoted.is_some();
        }
        Ok(all)
    }

    /// A block's bytes on their way to a device, read as nobody waits for them.
    async fn read_ahead(
        &self,
        key: &BlockKey,
        record: &BlockRecord,
        class: &CacheClass,
        deadline: Instant,
    ) -> Result<BlockBytes, EngineError> {
        let fetch = BlockFetch::of(record, class.clone())
            .map_err(|source| EngineError::BlockSize { key: key.clone(), source })?;
        let options = ReadOptions { deadline, urgency: Urgency::Prefetch };
        let read = self.hierarchy().read(self.objects(), &Arc::new(fetch), options).await;
        let served =
            read.map_err(|error| EngineError::Block { key: key.clone(), source: Arc::new(error) })?;
        Ok(served.bytes)
    }
}
