//! Faults on purpose: wrappers around an origin and a level that misbehave by a
//! seed, and count what they did, so that a test can show that its fault fired.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep};
use tpad_manifest::BlockId;

use crate::{
    BlockBytes, CacheClass, Check, Health, Level, LevelError, LevelRead, LevelUsage, Medium,
    Origin, OriginError, SlotMut, Urgency,
};

/// A way to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The answer takes this long.
    Slow(Duration),
    /// Only a part arrives, and the answer says so.
    Short,
    /// One bit of the answer is wrong.
    Flipped,
    /// There is no answer but an error.
    Failing,
    /// There is no answer at all, whatever the deadline.
    Hanging,
    /// What is there is said not to be.
    Missing,
    /// Only a part arrives, and the answer says that it was all.
    LyingLength,
}

/// Which faults fire how often.
#[derive(Debug)]
pub struct Faults {
    /// Each with its probability, tried in this order; the first that fires does.
    faults: Vec<(Fault, f64)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rng: ChaCha8Rng,
    fired: BTreeMap<Fault, u64>,
}

impl Faults {
    /// Faults with their probabilities, drawn from `seed`.
    pub fn new(seed: u64, faults: impl IntoIterator<Item = (Fault, f64)>) -> Arc<Self> {
        let state = State { rng: ChaCha8Rng::seed_from_u64(seed), fired: BTreeMap::new() };
        Arc::new(Self { faults: faults.into_iter().collect(), state: Mutex::new(state) })
    }

    /// No faults: the wrapper changes nothing.
    #[must_use]
    pub fn none() -> Arc<Self> {
        Self::new(0, [])
    }

    /// How often a fault fired.
    pub fn fired(&self, fault: Fault) -> u64 {
        self.lock().fired.get(&fault).copied().unwrap_or(0)
    }

    /// How often any fault fired.
    pub fn fired_in_all(&self) -> u64 {
        self.lock().fired.values().sum()
    }

    fn draw(&self) -> Option<Fault> {
        let mut state = self.lock();
        for (fault, probability) in &self.faults {
            if state.rng.random_bool(*probability) {
                *state.fired.entry(*fault).or_default() += 1;
                return Some(*fault);
            }
        }
        None
    }

    /// Spoils bytes that arrived whole.
    fn spoil(&self, fault: Option<Fault>, bytes: &mut [u8]) {
        let mut state = self.lock();
        match fault {
            Some(Fault::Flipped) if !bytes.is_empty() => {
                let bit = state.rng.random_range(0..bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            Some(Fault::LyingLength | Fault::Short) if !bytes.is_empty() => {
                let from = state.rng.random_range(0..bytes.len());
                for byte in &mut bytes[from..] {
                    *byte = byte.wrapping_add(1);
                }
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An origin that misbehaves.
pub struct FaultyOrigin {
    inner: Arc<dyn Origin>,
    faults: Arc<Faults>,
}

impl FaultyOrigin {
    /// `inner`, with these faults.
    #[must_use]
    pub fn new(inner: Arc<dyn Origin>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl Origin for FaultyOrigin {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn setbacks(&self) -> u64 {
        self.inner.setbacks()
    }

    async fn read_range(
        &self,
        object: &str,
        offset: u64,
        into: &mut [u8],
        deadline: Instant,
    ) -> Result<(), OriginError> {
        let fault = self.faults.draw();
        let named = || object.to_owned();
        match fault {
            Some(Fault::Slow(delay)) => sleep(delay).await,
            Some(Fault::Failing) => {
                let source = Arc::new(std::io::Error::other("injected failure"));
                return Err(OriginError::Io { object: named(), source });
            }
            Some(Fault::Hanging) => std::future::pending().await,
            Some(Fault::Missing) => return Err(OriginError::NotFound { object: named() }),
            _ => {}
        }
        self.inner.read_range(object, offset, into, deadline).await?;
        self.faults.spoil(fault, into);
        if fault == Some(Fault::Short) {
            let needed = offset.saturating_add(into.len() as u64);
            return Err(OriginError::Truncated { object: named(), bytes: offset, needed });
        }
        Ok(())
    }
}

/// A level that misbehaves when it reads and writes.
pub struct FaultyLevel {
    inner: Arc<dyn Level>,
    faults: Arc<Faults>,
}

impl FaultyLevel {
    /// `inner`, with these faults.
    #[must_use]
    pub fn new(inner: Arc<dyn Level>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

#[async_trait]
impl Level for FaultyLevel {
    fn medium(&self) -> Medium {
        self.inner.medium()
    }

    fn contains(&self, id: &BlockId) -> bool {
        self.inner.contains(id)
    }

    fn settle(&self, id: &BlockId) -> bool {
        self.inner.settle(id)
    }

    fn in_place(&self, id: &BlockId) -> Option<BlockBytes> {
        self.inner.in_place(id)
    }

    async fn read(
        &self,
        id: &BlockId,
        slot: SlotMut,
        urgency: Urgency,
    ) -> Result<LevelRead, LevelError> {
        let fault = self.faults.draw();
        match fault {
            Some(Fault::Slow(delay)) => sleep(delay).await,
            Some(Fault::Failing) => return Err(LevelError::new("injected failure")),
            Some(Fault::Hanging) => std::future::pending().await,
            Some(Fault::Missing) => return Ok(LevelRead::Miss(slot)),
            _ => {}
        }
        let mut read = self.inner.read(id, slot, urgency).await?;
        if let LevelRead::Hit { slot, check } = &mut read {
            self.faults.spoil(fault, slot);
            if fault.is_some() && *check == Check::Held {
                // What the level compared is not what is there any more.
                *check = Check::Digest;
            }
        }
        if fault == Some(Fault::Short) {
            return Err(LevelError::new("injected short read"));
        }
        Ok(read)
    }

    fn hurry(&self, id: &BlockId) {
        self.inner.hurry(id);
    }

    fn progress(&self) -> u64 {
        self.inner.progress()
    }

    async fn admit(
        &self,
        id: &BlockId,
        class: &CacheClass,
        bytes: &BlockBytes,
    ) -> Result<bool, LevelError> {
        match self.faults.draw() {
            Some(Fault::Slow(delay)) => sleep(delay).await,
            Some(Fault::Failing | Fault::Short) => {
                return Err(LevelError::new("injected failure"));
            }
            Some(Fault::Hanging) => std::future::pending().await,
            Some(Fault::Missing) => return Ok(false),
            _ => {}
        }
        self.inner.admit(id, class, bytes).await
    }

    async fn remove(&self, id: &BlockId) -> Result<(), LevelError> {
        self.inner.remove(id).await
    }

    fn usage(&self) -> LevelUsage {
        self.inner.usage()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}
