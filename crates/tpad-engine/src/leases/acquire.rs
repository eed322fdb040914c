//! Blocks into memory and under lease, all at once.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::{FutureExt as _, join_all};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tpad_manifest::{BlockId, BlockKey};
use tpad_store::{ErrorKind, Medium, ReadOptions, Served};

use super::{LeaseHolder, Leased, Worker, pages};
use crate::{Block, EngineError, Generation, Memory};

/// What became of each key.
pub type Acquired = Vec<Result<Leased, EngineError>>;

/// What is asked for at once, and how far it is.
struct Batch<'a> {
    generation: &'a Arc<Generation>,
    keys: &'a [BlockKey],
    deadline: Instant,
    found: Vec<Found>,
    seen: HashMap<BlockId, Seen>,
}

/// A block as it was found first.
#[derive(Clone, Copy)]
struct Seen {
    /// What its slot takes.
    bytes: u64,
    medium: Medium,
}

/// What is known of one key.
enum Found {
    Missing,
    /// Held from here on.
    There(Block),
    Failed(EngineError),
}

impl Worker {
    /// Leases blocks of a generation, each brought to memory if it is not there.
    ///
    /// Blocks are read and let go of first, since most of them stay in memory: nothing
    /// is held while they are waited for. Those that memory did not keep are read once
    /// more and held, under a share of the lease memory that was set aside for the whole
    /// batch before, so no two batches can wait for each other. At the deadline those
    /// that are there get their leases, and the others their errors. One that fails for
    /// a reason of its own keeps no other from its lease.
    ///
    /// # Errors
    /// When the leases would exceed this worker's bound or that of all: then there are
    /// none.
    pub async fn acquire(
        &self,
        generation: &Arc<Generation>,
        keys: &[BlockKey],
        deadline: Instant,
    ) -> Result<Acquired, EngineError> {
        let mut batch = Batch::new(generation, keys, deadline);
        batch.look();
        if batch.is_over() {
            return self.grant(batch);
        }
        batch.let_go();
        batch.read_through().await;
        batch.look();
        if batch.is_over() {
            return self.grant(batch);
        }
        batch.let_go();
        // Until the leases themselves count.
        let _share = self.share(&batch).await?;
        batch.look();
        if !batch.is_over() {
            batch.read_and_hold().await;
        }
        self.grant(batch)
    }

    /// A share of the lease memory in which the batch may hold what it has while it
    /// waits for the rest; `None` at its deadline.
    async fn share(&self, batch: &Batch<'_>) -> Result<Option<OwnedSemaphorePermit>, EngineError> {
        let wanted: u64 = batch.seen.values().map(|seen| seen.bytes).sum();
        let limit = self.most_bytes();
        if wanted > limit {
            let holder = LeaseHolder::Worker;
            return Err(EngineError::LeasesFull { wanted, limit, holder });
        }
        let shares = Arc::clone(&self.state.all.shares);
        let share = timeout_at(batch.deadline, shares.acquire_many_owned(pages(wanted))).await;
        // The semaphore is never closed.
        Ok(share.ok().and_then(Result::ok))
    }

    fn grant(&self, batch: Batch<'_>) -> Result<Acquired, EngineError> {
        let Batch { generation, keys, found, .. } = batch;
        let mut outcomes = Vec::with_capacity(keys.len());
        let mut blocks = Vec::new();
        for (key, found) in keys.iter().zip(found) {
            outcomes.push(match found {
                Found::There(block) => {
                    blocks.push(block);
                    None
                }
                Found::Failed(error) => Some(error),
                Found::Missing => {
                    Some(EngineError::Deadline { what: format!("{key} was not in memory") })
                }
            });
        }
        let mut leased = self.lease(blocks)?.into_iter();
        let outcome = |failed: Option<EngineError>| match failed {
            Some(error) => Some(Err(error)),
            None => leased.next().map(Ok),
        };
        let mut outcomes: Acquired = outcomes.into_iter().filter_map(outcome).collect();
        for leased in outcomes.iter_mut().flatten() {
            generation.count(&leased.block);
            let Block { key, record, served } = &leased.block;
            let named = (key, &record.id);
            leased.ordinal = self.state.publish(generation, Memory::Host, named, &served.bytes);
        }
        Ok(outcomes)
    }
}

impl<'a> Batch<'a> {
    fn new(generation: &'a Arc<Generation>, keys: &'a [BlockKey], deadline: Instant) -> Self {
        let found = keys.iter().map(|_| Found::Missing).collect();
        Self { generation, keys, deadline, found, seen: HashMap::new() }
    }

    /// Whether there is nothing to wait for any more.
    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
            || !self.found.iter().any(|found| matches!(found, Found::Missing))
    }

    /// Takes what is in memory now. Nothing is waited for, and no read begins: their
    /// deadline is over.
    fn look(&mut self) {
        let now = ReadOptions::demand(Instant::now());
        for n in self.missing() {
            let read = fetch(self.generation, &self.keys[n], now).now_or_never();
            if let Some(result) = read {
                self.take(n, result);
            }
        }
    }

    /// Reads what is missing and lets go of each as it comes.
    async fn read_through(&mut self) {
        let missing = self.missing();
        let reads = missing.iter().map(|n| {
            let read = fetch(self.generation, &self.keys[*n], ReadOptions::demand(self.deadline));
            read.map(|result| result.map(|block| (block.record.id, Seen::of(&block))))
        });
        for (n, result) in missing.iter().zip(join_all(reads).await) {
            match result {
                Ok((id, seen)) => {
                    self.seen.entry(id).or_insert(seen);
                }
                Err(error) => self.fail(*n, error),
            }
        }
    }

    /// Reads what is missing and holds it.
    async fn read_and_hold(&mut self) {
        let missing = self.missing();
        let reads = missing
            .iter()
            .map(|n| fetch(self.generation, &self.keys[*n], ReadOptions::demand(self.deadline)));
        for (n, result) in missing.iter().zip(join_all(reads).await) {
            self.take(*n, result);
        }
    }

    fn take(&mut self, n: usize, result: Result<Block, EngineError>) {
        match result {
            Ok(mut block) => {
                let seen = *self.seen.entry(block.record.id).or_insert_with(|| Seen::of(&block));
                block.served.medium = seen.medium;
                self.found[n] = Found::There(block);
            }
            Err(error) => self.fail(n, error),
        }
    }

    fn fail(&mut self, n: usize, error: EngineError) {
        // What is late may have come meanwhile.
        if error.kind() != ErrorKind::DeadlineExceeded {
            self.found[n] = Found::Failed(error);
        }
    }

    /// Holds nothing any more.
    fn let_go(&mut self) {
        for found in &mut self.found {
            if matches!(found, Found::There(_)) {
                *found = Found::Missing;
            }
        }
    }

    fn missing(&self) -> Vec<usize> {
        let missing = |(n, found): (usize, &Found)| matches!(found, Found::Missing).then_some(n);
        self.found.iter().enumerate().filter_map(missing).collect()
    }
}

async fn fetch(
    generation: &Generation,
    key: &BlockKey,
    options: ReadOptions,
) -> Result<Block, EngineError> {
    let (record, _, served) = generation.fetch(key, options).await?;
    Ok(Block { key: key.clone(), record, served })
}

impl Seen {
    fn of(block: &Block) -> Self {
        let Served { bytes, medium } = &block.served;
        Self { bytes: bytes.place().slot_bytes, medium: *medium }
    }
}
