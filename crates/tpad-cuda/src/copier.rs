//! Copies to a device: submitted by one thread, awaited by others.

mod aside;

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

pub use self::aside::Errand;
use self::aside::{Pressing, Turns};
use crate::{Completion, CudaError, Device, HostCopy, Stream};

/// Copies that may wait to be submitted. More are refused: who copies has a bound of its
/// own, which is lower.
const QUEUED: usize = 1024;
/// Copies of a stream that are under way: enough that the bus never waits for the host,
/// at 1 MiB in 20 µs for longer than a thread takes to wake up.
const UNDER_WAY: usize = 16;
/// Copies of so much and more are made one after the other: two at once would both come as
/// late as the second. Of shorter ones several are under way, so that the bus is used while
/// one ends and the next begins.
const LONG_BYTES: usize = 32 << 20;

/// Copies host memory to one device, several copies at once.
///
/// A copy keeps its source and its destination until it is over, whether anyone waits
/// for it or not. Dropped, the copier finishes what it was given and joins its threads.
pub struct Copier {
    jobs: Option<SyncSender<Job>>,
    turns: Arc<Turns>,
    threads: Vec<JoinHandle<()>>,
}

/// What is called with the outcome of a copy, on a thread of the copier: it may not block.
type Done = Box<dyn FnOnce(Result<(), CudaError>) + Send>;

struct Job {
    copy: HostCopy,
    pressing: Pressing,
    done: Done,
}

struct UnderWay {
    completion: Box<dyn Completion>,
    pressing: Pressing,
    done: Done,
    /// Of a long one: as long as it is under way.
    _long: Option<Arc<()>>,
}

/// A stream, and whoever waits for its copies.
type Lane = (Box<dyn Stream>, SyncSender<UnderWay>);

impl Copier {
    /// A copier with so many streams of the device, at least one.
    ///
    /// # Errors
    /// When the device gives no stream or the system no thread.
    pub fn new(device: &Arc<dyn Device>, streams: usize) -> Result<Self, CudaError> {
        let (jobs, given) = sync_channel(QUEUED);
        let turns = Arc::<Turns>::default();
        let mut copier = Self { jobs: Some(jobs), turns, threads: Vec::new() };
        let index = device.facts().index;
        let mut lanes = Vec::new();
        for n in 0..streams.max(1) {
            let (under_way, to_await) = sync_channel(UNDER_WAY);
            copier.start(format!("gpu{index}-done{n}"), move || await_all(&to_await))?;
            lanes.push((device.stream()?, under_way));
        }
        let (sent, to_await) = sync_channel(aside::UNDER_WAY);
        let turns = Arc::clone(&copier.turns);
        copier.start(format!("gpu{index}-done"), move || aside::await_all(&turns, &to_await))?;
        let (turns, stream) = (Arc::clone(&copier.turns), device.stream()?);
        copier.start(format!("gpu{index}-aside"), move || {
            aside::submit_all(&turns, &*stream, &sent);
        })?;
        copier.start(format!("gpu{index}-copy"), move || submit_all(&given, &lanes))?;
        Ok(copier)
    }

    /// Has the copy made. `done` is called with the outcome when the host has seen it:
    /// from then on the bytes are there for every stream and process. It is called on a
    /// thread of the copier and may not block, nor drop the copier; or at once, on this
    /// one, with [`CudaError::Busy`] when too many copies wait.
    pub fn copy(&self, copy: HostCopy, done: impl FnOnce(Result<(), CudaError>) + Send + 'static) {
        let job = Job { copy, pressing: Pressing::new(&self.turns), done: Box::new(done) };
        let refused = match &self.jobs {
            Some(jobs) => jobs.try_send(job),
            None => Err(TrySendError::Disconnected(job)),
        };
        match refused {
            Ok(()) => {}
            Err(TrySendError::Full(job)) => (job.done)(Err(CudaError::Busy)),
            Err(TrySendError::Disconnected(job)) => (job.done)(Err(CudaError::Ended)),
        }
    }

    /// Has a copy made that nobody waits for: piece by piece, while no copy of
    /// [`Copier::copy`] is queued or under way, and at once from when the errand is hurried.
    /// It is given up between two pieces when it is not `wanted` any more, which is asked on a
    /// thread of the copier and may not block. `done` is called as for [`Copier::copy`], with
    /// whether all of it was copied.
    pub fn copy_aside(
        &self,
        copy: HostCopy,
        errand: &Arc<Errand>,
        wanted: impl Fn() -> bool + Send + 'static,
        done: impl FnOnce(Result<bool, CudaError>) + Send + 'static,
    ) {
        self.turns.add(aside::Job {
            copy,
            errand: Arc::clone(errand),
            wanted: Box::new(wanted),
            done: Box::new(done),
            at: 0,
            failed: Arc::default(),
        });
    }

    fn start(
        &mut self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), CudaError> {
        let thread = thread::Builder::new().name(name).spawn(run);
        let thread = thread.map_err(|error| CudaError::system("starting a thread", error))?;
        self.threads.push(thread);
        Ok(())
    }
}

fn submit_all(jobs: &Receiver<Job>, lanes: &[Lane]) {
    let (under_way, mut turn) = (Arc::new(()), 0_usize);
    for Job { copy, pressing, done } in jobs {
        let long = copy.from.len() >= LONG_BYTES;
        // Long ones all on the first; short ones where they are not behind one.
        let first = usize::from(Arc::strong_count(&under_way) > 1 && lanes.len() > 1);
        turn = turn.wrapping_add(1);
        let at = if long { 0 } else { first + turn % (lanes.len() - first) };
        let Some((stream, to_await)) = lanes.get(at) else { continue };
        let _long = long.then(|| Arc::clone(&under_way));
        match stream.copy(copy) {
            Ok(completion) => {
                // Blocks while as many are under way as may be. It only fails when the
                // other thread has panicked: the completion waits when it is dropped.
                let _sent = to_await.send(UnderWay { completion, pressing, done, _long });
            }
            Err(error) => {
                drop(pressing);
                done(Err(error));
            }
        }
    }
}

fn await_all(under_way: &Receiver<UnderWay>) {
    for UnderWay { completion, pressing, done, _long } in under_way {
        // Whatever it is: memory that may still be written is not to be used again.
        let outcome = completion.wait().map_err(CudaError::unseen);
        // The source is let go of before anyone hears that it may be.
        drop(completion);
        drop(pressing);
        done(outcome);
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        self.jobs = None;
        self.turns.end();
        // The first ones await what the last one submits, and end after it.
        for thread in self.threads.drain(..).rev() {
            let _panicked = thread.join();
        }
    }
}

impl fmt::Debug for Copier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Copier").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}
