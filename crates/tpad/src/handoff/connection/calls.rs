//! A worker's `Acquire`s, from the message to the answer.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;
use tpad_engine::{
    Acquired, DeviceAcquired, DirectoryOffer, EngineError, Generation, Memory, Worker,
};
use tpad_manifest::BlockKey;
use tpad_proto::handoff::v1::{self as wire, Failure, daemon_message};

use super::{Connection, End};
use crate::handoff::{Shared, answer};

/// Keys of one `Acquire`: with some thirty tensors each the answer is a frame.
pub(super) const KEYS: usize = 256;

/// The longest that an `Acquire` waits, whatever it says.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// What a worker's queued `Acquire`s may take.
const QUEUED_BYTES: usize = 1 << 20;

/// `Acquire`s that wait for others to be over.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<wire::Acquire>,
    bytes: usize,
}

impl Queue {
    /// Appends a call, or says that there is no room for it.
    pub(super) fn add(&mut self, acquire: wire::Acquire) -> Result<(), u64> {
        let bytes = memory(&acquire);
        if self.bytes + bytes > QUEUED_BYTES {
            return Err(acquire.call);
        }
        self.bytes += bytes;
        self.waiting.push_back(acquire);
        Ok(())
    }

    pub(super) fn next(&mut self) -> Option<wire::Acquire> {
        let acquire = self.waiting.pop_front()?;
        self.bytes -= memory(&acquire);
        Some(acquire)
    }
}

/// What a call takes while it waits: its text, and a place for each key, which is two bytes
/// on the wire if it is empty.
fn memory(acquire: &wire::Acquire) -> usize {
    acquire.encoded_len() + size_of_val(&*acquire.keys)
}

/// An `Acquire` that is over.
pub(super) struct Done {
    call: u64,
    result: Result<Granted, Failure>,
}

/// What was leased of a generation.
enum Granted {
    InHostMemory(Arc<Generation>, Acquired),
    OnDevice(Arc<Generation>, DeviceAcquired),
}

impl Connection {
    /// Begins a call.
    pub(super) fn begin(&mut self, worker: Arc<Worker>, acquire: wire::Acquire) -> Result<(), End> {
        let wire::Acquire { call, ref keys, .. } = acquire;
        // Told before it waits: what waits is bounded by what is asked.
        if let Err(failure) = admit(keys) {
            return self.fail(call, failure);
        }
        let shared = Arc::clone(&self.shared);
        self.calls.push(Box::pin(async move {
            Done { call, result: shared.acquire(&worker, acquire).await }
        }));
        Ok(())
    }

    /// Answers a call; slabs that are new to the worker go along.
    pub(super) fn finish(&mut self, Done { call, result }: Done) -> Result<(), End> {
        let (generation, acquired) = match result {
            Ok(Granted::InHostMemory(generation, acquired)) => (generation, acquired),
            Ok(Granted::OnDevice(generation, acquired)) => {
                return self.finish_on_device(call, &generation, &acquired);
            }
            Err(failure) => return self.fail(call, failure),
        };
        let mut answer = match answer::acquired(call, &generation, &acquired) {
            Ok(answer) => answer,
            Err(failure) => {
                self.let_go(acquired.iter().flatten().map(|leased| leased.lease));
                return self.fail(call, failure);
            }
        };
        let mut descriptors = Vec::new();
        for leased in acquired.iter().flatten() {
            // Without a descriptor the worker cannot be told of what it holds, nor can it
            // be taken back what it was told of before.
            let bytes = &leased.block.served.bytes;
            let sent = self.slabs.send(bytes.place().slab, || bytes.shared_slab());
            let sent = sent.map_err(|error| End::Refused(answer::no_descriptor(&error)))?;
            if let Some((slab, descriptor)) = sent {
                answer.slabs.push(slab);
                descriptors.push(descriptor);
            }
        }
        let counts = counts(&acquired);
        self.answer(answer, descriptors, &generation, Memory::Host, counts)
    }

    /// Sends an answer with its slabs, and with what the worker needs to hold the blocks
    /// by itself from then on, once.
    pub(super) fn answer(
        &mut self,
        mut answer: wire::Acquired,
        mut descriptors: Vec<OwnedFd>,
        generation: &Generation,
        memory: Memory,
        (leases, failures): (usize, usize),
    ) -> Result<(), End> {
        if leases > 0
            && let Some(offer) = self.offer(generation, memory)
        {
            let DirectoryOffer { cells, directory, uses, blocks } = offer;
            answer.directory = Some(wire::Directory { cells: cells.is_some(), blocks });
            descriptors.extend(cells.into_iter().chain([directory, uses]));
        }
        self.shared.metrics.acquired(leases, failures);
        self.send(daemon_message::Message::Acquired(answer), descriptors)?;
        self.flush()
    }

    /// What the worker needs to hold blocks of this generation by itself, once. Without
    /// it, it goes on by asking, and the next answer tries again.
    fn offer(&self, generation: &Generation, memory: Memory) -> Option<DirectoryOffer> {
        let offer = self.worker.get()?.offer(generation, memory);
        offer.unwrap_or_else(|error| {
            tracing::debug!(%error, peer = %self.peer, "no directory for a worker");
            None
        })
    }

    /// Ends leases that the worker will not hear of.
    pub(super) fn let_go(&self, leases: impl Iterator<Item = u64>) {
        let leases: Vec<u64> = leases.collect();
        if let Some(worker) = self.worker.get() {
            worker.release(&leases);
        }
    }

    pub(super) fn fail(&mut self, call: u64, failure: Failure) -> Result<(), End> {
        self.shared.metrics.acquired(0, 1);
        let acquired = wire::Acquired { call, failure: Some(failure), ..Default::default() };
        self.send(daemon_message::Message::Acquired(acquired), Vec::new())?;
        self.flush()
    }
}

/// Whether one message may name so many keys.
pub(super) fn admit(keys: &[tpad_proto::v1::BlockKey]) -> Result<(), Failure> {
    if keys.is_empty() || keys.len() > KEYS {
        let message = format!("keys: {} of them, 1 to {KEYS} are taken", keys.len());
        return Err(answer::invalid(&message));
    }
    Ok(())
}

/// How many leases an answer has, and how many failures.
pub(super) fn counts<L>(acquired: &[Result<L, EngineError>]) -> (usize, usize) {
    let leases = acquired.iter().flatten().count();
    (leases, acquired.len() - leases)
}

impl Shared {
    /// Leases what a worker asks for.
    async fn acquire(&self, worker: &Worker, acquire: wire::Acquire) -> Result<Granted, Failure> {
        let wire::Acquire { model, generation: asked, keys, timeout_ms, device, call: _ } = acquire;
        let told = |error: EngineError| answer::failure(&error);
        let (generation, keys) = self.named(&model, asked, keys)?;
        let wait = Duration::from_millis(u64::from(timeout_ms)).min(LONGEST_WAIT);
        let deadline = Instant::now() + wait;
        if device.is_empty() {
            let acquired = worker.acquire(&generation, &keys, deadline).await.map_err(told)?;
            return Ok(Granted::InHostMemory(generation, acquired));
        }
        let acquired = worker.acquire_on(&device, &generation, &keys, deadline).await;
        Ok(Granted::OnDevice(generation, acquired.map_err(told)?))
    }

    /// The generation of a model that a message names, and the keys.
    pub(super) fn named(
        &self,
        model: &str,
        asked: u64,
        keys: Vec<tpad_proto::v1::BlockKey>,
    ) -> Result<(Arc<Generation>, Vec<BlockKey>), Failure> {
        let read = |(n, key): (usize, tpad_proto::v1::BlockKey)| {
            BlockKey::try_from(key).map_err(|error| answer::invalid(&format!("keys[{n}]: {error}")))
        };
        let keys = keys.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        let generation = self.engine.open(model).map_err(|error| answer::failure(&error))?;
        if asked != 0 && asked != generation.number() {
            return Err(answer::generation_changed(asked, &generation));
        }
        Ok((generation, keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_queued_in_order_and_within_a_bound() {
        let mut queue = Queue::default();
        let acquire = |call| wire::Acquire { call, model: "m".repeat(1000), ..Default::default() };
        let mut taken = 0;
        while queue.add(acquire(taken)).is_ok() {
            taken += 1;
        }
        assert!((900..=1100).contains(&taken), "{taken} of some 1000 bytes each");
        assert_eq!(queue.add(acquire(5000)), Err(5000), "it is told which one");
        assert_eq!(queue.next().map(|acquire| acquire.call), Some(0));
        queue.add(acquire(5001)).expect("there is room again");
        let rest: Vec<u64> = std::iter::from_fn(|| queue.next()).map(|next| next.call).collect();
        assert_eq!(rest, (1..taken).chain([5001]).collect::<Vec<_>>());
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn keys_that_are_nothing_on_the_wire_count_with_what_they_take() {
        let keys = vec![tpad_proto::v1::BlockKey::default(); 10_000];
        let acquire = |call| wire::Acquire { call, keys: keys.clone(), ..Default::default() };
        let mut queue = Queue::default();
        let taken = (0..).take_while(|call| queue.add(acquire(*call)).is_ok()).count();
        assert!((1..=QUEUED_BYTES / 10_000 / 16).contains(&taken), "{taken} of some 500 KB each");
    }
}
