//! Threads in the place of streams.

#[cfg(feature = "testing")]
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
#[cfg(feature = "testing")]
use std::time::Duration;

use super::latch::{Latch, Ledger};
use crate::driver::span;
use crate::{Completion, CudaError, HostCopy, Stream};
#[cfg(feature = "testing")]
use crate::{Memory, fault::LateRead};

/// Work that a stream takes before whoever submits more has to wait, as with a GPU.
const SUBMITTED: usize = 64;

/// A thread that makes copies, one after another.
#[derive(Debug)]
pub(super) struct ThreadStream {
    ledger: Arc<Ledger>,
    work: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

struct Work {
    copy: HostCopy,
    flight: Arc<Outcome>,
    latch: Arc<Latch>,
}

#[derive(Debug, Default)]
struct Outcome(Mutex<Option<CudaError>>);

/// A copy that is under way; the thread has its source and its destination.
#[derive(Debug)]
struct Flight {
    latch: Arc<Latch>,
    outcome: Arc<Outcome>,
}

impl ThreadStream {
    pub(super) fn new(ledger: &Arc<Ledger>) -> Result<Self, CudaError> {
        let (work, submitted) = sync_channel::<Work>(SUBMITTED);
        let run = move || {
            for Work { copy, flight, latch } in submitted {
                let failed = copy.to.write(copy.offset, &copy.from).err();
                *flight.0.lock().unwrap_or_else(PoisonError::into_inner) = failed;
                drop(copy);
                latch.open();
            }
        };
        let thread = thread::Builder::new().name("stand-in stream".to_owned()).spawn(run);
        let thread = thread.map_err(|error| CudaError::system("starting a thread", error))?;
        Ok(Self { ledger: Arc::clone(ledger), work: Some(work), thread: Some(thread) })
    }
}

impl Stream for ThreadStream {
    fn copy(&self, copy: HostCopy) -> Result<Box<dyn Completion>, CudaError> {
        span(copy.offset, copy.from.len(), copy.to.bytes())?;
        let work = self.work.as_ref().ok_or(CudaError::Ended)?;
        let (latch, outcome) = (self.ledger.enter(), Arc::<Outcome>::default());
        let flight = Flight { latch: Arc::clone(&latch), outcome: Arc::clone(&outcome) };
        let submitted = Work { copy, flight: outcome, latch: Arc::clone(&latch) };
        if work.send(submitted).is_err() {
            latch.open();
            return Err(CudaError::Ended);
        }
        Ok(Box::new(flight))
    }
}

impl Completion for Flight {
    fn is_done(&self) -> Result<bool, CudaError> {
        if self.latch.is_open() { self.outcome.result().map(|()| true) } else { Ok(false) }
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.latch.wait();
        self.outcome.result()
    }
}

impl Outcome {
    fn result(&self) -> Result<(), CudaError> {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.clone().map_or(Ok(()), Err)
    }
}

impl Drop for ThreadStream {
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// A thread that waits and then reads.
#[cfg(feature = "testing")]
#[derive(Debug)]
struct Late {
    latch: Arc<Latch>,
    sum: Arc<OnceLock<Result<u64, CudaError>>>,
}

#[cfg(feature = "testing")]
pub(super) fn read_late(
    ledger: &Ledger,
    memory: &Arc<dyn Memory>,
    offset: u64,
    bytes: u64,
    delay: Duration,
) -> Result<Box<dyn LateRead>, CudaError> {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    span(offset, length, memory.bytes())?;
    let (latch, sum) = (ledger.enter(), Arc::<OnceLock<_>>::default());
    let late = Late { latch: Arc::clone(&latch), sum: Arc::clone(&sum) };
    let memory = Arc::clone(memory);
    let run = move || {
        // Nothing ever comes: a wait without anything to wait for.
        let (_never, nothing) = sync_channel::<()>(0);
        let _late = nothing.recv_timeout(delay);
        let mut there = vec![0; length];
        let read = memory.read(offset, &mut there);
        let _first = sum.set(read.map(|()| crate::fault::checksum(&there)));
        drop(memory);
        latch.open();
    };
    let thread = thread::Builder::new().name("stand-in work".to_owned()).spawn(run);
    thread.map_err(|error| CudaError::system("starting a thread", error))?;
    Ok(Box::new(late))
}

#[cfg(feature = "testing")]
impl Completion for Late {
    fn is_done(&self) -> Result<bool, CudaError> {
        Ok(self.latch.is_open())
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.latch.wait();
        Ok(())
    }
}

#[cfg(feature = "testing")]
impl LateRead for Late {
    fn checksum(&self) -> Result<u64, CudaError> {
        self.latch.wait();
        self.sum.get().cloned().unwrap_or(Err(CudaError::Ended))
    }
}
