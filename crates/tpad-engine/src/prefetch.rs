//! Prefetch: blocks that a worker expects to ask for, brought to host memory
//! after all demand.
//!
//! A guess may be wrong, so it is bounded: so many calls at once, so many blocks
//! of each on their way, never more than the budgets of its classes keep, nothing
//! that would have to wait for memory. Dropping it ends it; blocks on their way
//! arrive.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures::stream::{BoxStream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tpad_store::{CacheClass, ErrorKind, Medium, ReadOptions, Urgency, slot_bytes};

use crate::generation::{ScopeStep, ScopedBlock};
use crate::{Engine, EngineError, Generation, Scope, Totals};

/// Calls that read at a time; more wait in line.
const CALLS: usize = 16;

/// Blocks of one call on their way at a time.
const AT_ONCE: usize = 8;

/// Lets so many prefetches read at a time.
pub(crate) fn turns() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(CALLS))
}

/// A prefetch under way.
pub struct Prefetch {
    /// What the blocks belong to.
    pub generation: Arc<Generation>,
    /// What was asked for.
    pub asked: Totals,
    /// What becomes of each block, in the order in which that is known.
    pub blocks: BoxStream<'static, PrefetchedBlock>,
}

/// What became of a block.
#[derive(Debug)]
pub struct PrefetchedBlock {
    /// The size of its image.
    pub bytes: u64,
    /// What became of it.
    pub outcome: Prefetched,
}

/// What prefetching a block came to.
#[derive(Debug)]
pub enum Prefetched {
    /// It lay in host memory.
    There,
    /// It lies there now.
    Fetched,
    /// Memory had no room for a guess.
    NoRoom,
    /// It could not be read.
    Failed(EngineError),
}

impl Engine {
    /// Brings a scope's blocks to host memory, after all demand.
    ///
    /// # Errors
    /// When there is no such model, the scope names what does not exist, its
    /// index cannot be read, or there is no turn in time.
    pub async fn prefetch(
        &self,
        name: &str,
        scope: &Scope,
        deadline: Instant,
    ) -> Result<Prefetch, EngineError> {
        let generation = self.open(name)?;
        let turn = timeout_at(deadline, Arc::clone(&self.prefetches).acquire_owned()).await;
        let late = |_| EngineError::Deadline { what: "a prefetch had its turn".into() };
        let turn = turn.map_err(late)?.map_err(|_closed| EngineError::Stopping)?;
        let steps = generation.scope_steps(scope)?;
        let mut asked = Totals::default();
        for step in &steps {
            for block in generation.scope_blocks(step, deadline).await? {
                asked.add(block.bytes);
            }
            generation.bounded(asked.blocks)?;
        }
        let walk = Walk {
            generation: Arc::clone(&generation),
            steps: steps.into(),
            blocks: VecDeque::new(),
            left: BTreeMap::new(),
            deadline,
            _turn: turn,
        };
        let blocks = futures::stream::unfold(walk, Walk::next).buffer_unordered(AT_ONCE).boxed();
        Ok(Prefetch { generation, asked, blocks })
    }
}

/// The blocks of a scope, one layer of a tier in memory at a time.
struct Walk {
    generation: Arc<Generation>,
    steps: VecDeque<ScopeStep>,
    blocks: VecDeque<ScopedBlock>,
    /// What each budget may still keep of this call: a class's own, or what the
    /// classes without one share.
    left: BTreeMap<Option<CacheClass>, u64>,
    deadline: Instant,
    _turn: OwnedSemaphorePermit,
}

impl Walk {
    /// The next block's reading, and the walk from there.
    async fn next(
        mut self,
    ) -> Option<(impl Future<Output = PrefetchedBlock> + Send + 'static, Self)> {
        while self.blocks.is_empty() {
            let step = self.steps.pop_front()?;
            // It was read a moment ago; if it cannot be now, neither can its blocks.
            let blocks = self.generation.scope_blocks(&step, self.deadline).await;
            self.blocks = blocks.unwrap_or_default().into();
        }
        let block = self.blocks.pop_front()?;
        let class = self.generation.class(&block.key);
        let hierarchy = Arc::clone(self.generation.hierarchy());
        let dram = hierarchy.dram();
        let budget = dram.kept_of(&class).capacity;
        let left = self.left.entry(dram.has_budget(&class).then_some(class)).or_insert(budget);
        let rest = slot_bytes(block.bytes).and_then(|bytes| left.checked_sub(bytes));
        *left = rest.unwrap_or(*left);
        let (generation, deadline) = (Arc::clone(&self.generation), self.deadline);
        let reading = async move {
            let outcome = if hierarchy.holds(Medium::Dram, &block.id) {
                Prefetched::There
            } else if rest.is_none() {
                Prefetched::NoRoom
            } else {
                bring(&generation, &block, deadline).await
            };
            PrefetchedBlock { bytes: block.bytes, outcome }
        };
        Some((reading, self))
    }
}

async fn bring(generation: &Generation, block: &ScopedBlock, deadline: Instant) -> Prefetched {
    let options = ReadOptions { deadline, urgency: Urgency::Prefetch };
    match generation.fetch(&block.key, options).await {
        Ok(_) if generation.hierarchy().holds(Medium::Dram, &block.id) => Prefetched::Fetched,
        Ok(_) => Prefetched::NoRoom,
        Err(error) if error.kind() == ErrorKind::ResourceExhausted => Prefetched::NoRoom,
        Err(error) => Prefetched::Failed(error),
    }
}
