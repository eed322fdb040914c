//! How blocks' files are read: in pieces, several at once over all blocks, straight
//! into their slots, each checked as it comes.
//!
//! Who reads is chosen when the cache directory is opened, by really reading a
//! block: io_uring where the kernel lets this process use it, threads that wait for
//! the disk where not. Both take their work from one [`Queue`]; when a ring fails,
//! threads take over.

mod block;
mod queue;
mod ring;
mod threads;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tpad_manifest::BlockId;

use self::block::Job;
pub(super) use self::block::{Answer, Unread};
use self::queue::Queue;
use self::ring::{IN_FLIGHT, Ring};
use self::threads::{THREADS, Thread};
use crate::{SlotMut, Urgency};

/// Rings at most: each checks what it reads, at some 8 GB/s (docs/performance.md, "Cold
/// reads"), so that four keep up with the fastest disks of a node.
const MOST_RINGS: usize = 4;

/// Which way blocks are to be read from disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NvmeIo {
    /// io_uring where it works, threads where not.
    #[default]
    Auto,
    /// Likewise, but threads are worth a warning.
    IoUring,
    /// Threads.
    Threads,
}

/// A way to read from disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    IoUring,
    Threads,
}

/// Reads until the queue is closed.
trait Work: Send + 'static {
    fn work(self: Box<Self>, queue: &Queue);
}

/// Reads blocks' files. Dropped, it reads nothing more; its threads end with what
/// they have in flight.
pub(super) struct Reader {
    queue: Arc<Queue>,
    way: Way,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Way {
    /// The name in configuration, status and logs.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Threads => "threads",
        }
    }
}

impl Reader {
    /// A reader that works this way.
    ///
    /// # Errors
    /// When the system does not provide what it needs.
    pub(super) fn start(way: Way) -> io::Result<Self> {
        match way {
            Way::IoUring => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from);
                let rings = cores.min(MOST_RINGS);
                let depth = IN_FLIGHT.div_ceil(rings);
                let rings: Vec<Ring> =
                    (0..rings).map(|index| Ring::new(depth, index)).collect::<io::Result<_>>()?;
                let bells = rings.iter().map(Ring::bell).collect();
                let workers = rings.into_iter().map(|ring| Box::new(ring) as Box<dyn Work>);
                Self::of(way, Queue::new(IN_FLIGHT, bells), workers)
            }
            Way::Threads => {
                let workers = (0..THREADS).map(|_| Box::new(Thread) as Box<dyn Work>);
                Self::of(way, Queue::new(THREADS, Vec::new()), workers)
            }
        }
    }

    fn of(
        way: Way,
        queue: Arc<Queue>,
        workers: impl Iterator<Item = Box<dyn Work>>,
    ) -> io::Result<Self> {
        let reader = Self { queue, way, workers: Mutex::default() };
        for (n, worker) in workers.enumerate() {
            let queue = Arc::clone(&reader.queue);
            let thread = std::thread::Builder::new().name(format!("tpad-nvme-{n}"));
            // Failing, those before it end with the reader.
            let thread = thread.spawn(move || worker.work(&queue))?;
            reader.workers().push(thread);
        }
        Ok(reader)
    }

    /// How it reads now: not as it began, after a failure.
    pub(super) fn way(&self) -> Way {
        if self.failed().is_some() { Way::Threads } else { self.way }
    }

    /// What kept it from going on as it began.
    pub(super) fn failed(&self) -> Option<String> {
        self.queue.failed()
    }

    /// Begins to read the block `id` from a file into a slot of its size; `direct`
    /// past the page cache. The answer does not come when the reader ends.
    ///
    /// Whoever does not wait for it lets go of the receiver: what was not begun is
    /// not read then, and the slot comes free when nothing writes to it any more.
    pub(super) fn read(
        &self,
        id: &BlockId,
        path: PathBuf,
        direct: bool,
        slot: SlotMut,
        urgency: Urgency,
    ) -> oneshot::Receiver<Answer> {
        let (answer, answered) = oneshot::channel();
        self.queue.push(Job { id: *id, path, direct, slot, answer }, urgency);
        answered
    }

    /// Who waited for a read has let go of it.
    pub(super) fn purge(&self) {
        self.queue.purge();
    }

    /// Someone waits for a block that was read for nobody.
    pub(super) fn hurry(&self, id: &BlockId) {
        self.queue.hurry(id);
    }

    /// Grows as long as the disk works.
    pub(super) fn progress(&self) -> u64 {
        self.queue.progress()
    }

    /// Reads nothing more, and waits for what the disk has in hand.
    pub(super) async fn close(&self) {
        self.queue.close();
        let workers = std::mem::take(&mut *self.workers());
        let join = move || workers.into_iter().for_each(|worker| drop(worker.join()));
        // A runtime that ends before has nobody left who waits.
        let _joined = tokio::task::spawn_blocking(join).await;
    }

    fn workers(&self) -> std::sync::MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("way", &self.way).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
