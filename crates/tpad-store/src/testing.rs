//! An origin and a level in plain memory, for tests here and above.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;
use tpad_manifest::BlockId;

use crate::{
    BlockBytes, CacheClass, Check, Level, LevelError, LevelRead, LevelUsage, Medium, Origin,
    OriginError, SlotMut, Urgency, crc64_nvme,
};

/// An origin whose objects are in memory and whose requests are counted.
#[derive(Debug, Default)]
pub struct MemoryOrigin {
    objects: HashMap<String, Bytes>,
    requests: Mutex<BTreeMap<RangeKey, u64>>,
}

/// A range that was asked for: object, offset, bytes.
pub type RangeKey = (String, u64, u64);

impl MemoryOrigin {
    /// An origin with these objects.
    pub fn new(objects: impl IntoIterator<Item = (String, Bytes)>) -> Self {
        Self { objects: objects.into_iter().collect(), requests: Mutex::default() }
    }

    /// How often each range was asked for.
    pub fn requests(&self) -> BTreeMap<RangeKey, u64> {
        lock(&self.requests).clone()
    }
}

#[async_trait]
impl Origin for MemoryOrigin {
    fn url(&self) -> &str {
        "memory"
    }

    async fn read_range(
        &self,
        object: &str,
        offset: u64,
        into: &mut [u8],
        _deadline: Instant,
    ) -> Result<(), OriginError> {
        let key = (object.to_owned(), offset, into.len() as u64);
        *lock(&self.requests).entry(key).or_default() += 1;
        // So that other tasks run between a request and its answer.
        tokio::task::yield_now().await;
        let object = object.to_owned();
        let Some(content) = self.objects.get(&object) else {
            return Err(OriginError::NotFound { object });
        };
        let needed = offset.saturating_add(into.len() as u64);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match content.get(start..start.saturating_add(into.len())) {
            Some(range) => {
                into.copy_from_slice(range);
                Ok(())
            }
            None if into.is_empty() => Ok(()),
            None => Err(OriginError::Truncated { object, bytes: content.len() as u64, needed }),
        }
    }
}

/// A level in plain memory, which forgets the oldest first: the second
/// implementation beside host memory, one that copies and keeps checksums.
#[derive(Debug)]
pub struct MemoryLevel {
    medium: Medium,
    capacity: u64,
    state: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    blocks: HashMap<BlockId, (Bytes, u64)>,
    order: VecDeque<BlockId>,
    bytes: u64,
}

impl MemoryLevel {
    /// A level that keeps at most `capacity` bytes and passes for `medium`.
    #[must_use]
    pub fn new(medium: Medium, capacity: u64) -> Self {
        Self { medium, capacity, state: Mutex::default() }
    }
}

impl Kept {
    fn remove(&mut self, id: &BlockId) {
        if let Some((bytes, _)) = self.blocks.remove(id) {
            self.bytes -= bytes.len() as u64;
            self.order.retain(|other| other != id);
        }
    }
}

#[async_trait]
impl Level for MemoryLevel {
    fn medium(&self) -> Medium {
        self.medium
    }

    fn contains(&self, id: &BlockId) -> bool {
        lock(&self.state).blocks.contains_key(id)
    }

    async fn read(
        &self,
        id: &BlockId,
        mut slot: SlotMut,
        _urgency: Urgency,
    ) -> Result<LevelRead, LevelError> {
        let found = lock(&self.state).blocks.get(id).cloned();
        match found {
            Some((bytes, crc)) if bytes.len() == slot.len() => {
                slot.copy_from_slice(&bytes);
                Ok(LevelRead::Hit { slot, check: Check::Crc64Nvme(crc) })
            }
            _ => Ok(LevelRead::Miss(slot)),
        }
    }

    async fn admit(
        &self,
        id: &BlockId,
        _class: &CacheClass,
        bytes: &BlockBytes,
    ) -> Result<bool, LevelError> {
        let size = bytes.len() as u64;
        if size > self.capacity {
            return Ok(false);
        }
        let crc = crc64_nvme(bytes);
        let copy = Bytes::from(bytes.to_vec());
        let mut state = lock(&self.state);
        state.remove(id);
        while state.bytes + size > self.capacity {
            let Some(oldest) = state.order.front().copied() else { break };
            state.remove(&oldest);
        }
        state.blocks.insert(*id, (copy, crc));
        state.order.push_back(*id);
        state.bytes += size;
        Ok(true)
    }

    async fn remove(&self, id: &BlockId) -> Result<(), LevelError> {
        lock(&self.state).remove(id);
        Ok(())
    }

    fn usage(&self) -> LevelUsage {
        let state = lock(&self.state);
        let blocks = state.blocks.len() as u64;
        LevelUsage { blocks, bytes: state.bytes, capacity: self.capacity }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
