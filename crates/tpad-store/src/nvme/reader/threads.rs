//! Reading with threads that wait for the disk: one read of each at a time.

use std::io;

use super::Work;
use super::queue::{Queue, Task};

/// Threads that read. Four that only read keep a disk busy with pieces of 4 MiB; these
/// also check what they have read before they read on, so there are more: 0.92 of what
/// the disk gives (docs/performance.md, "Cold reads").
pub(super) const THREADS: usize = 6;

/// A thread that reads one piece at a time.
#[derive(Debug)]
pub(super) struct Thread;

/// Has as many threads as there are to be read, in the place of a worker that failed,
/// while `meanwhile` runs on this one. Returns when the queue is closed.
pub(super) fn stand_in(queue: &Queue, meanwhile: impl FnOnce()) {
    std::thread::scope(|scope| {
        for n in 1..THREADS {
            let thread = std::thread::Builder::new().name(format!("tpad-nvme-t{n}"));
            let started = thread.spawn_scoped(scope, || Box::new(Thread).work(queue));
            if let Err(error) = started {
                tracing::warn!(level = "nvme", %error, "fewer threads read than there should be");
                break;
            }
        }
        meanwhile();
        Box::new(Thread).work(queue);
    });
}

impl Work for Thread {
    fn work(self: Box<Self>, queue: &Queue) {
        while let Some(task) = queue.wait() {
            match task {
                Task::Open(job, urgency) => queue.begin(job, urgency),
                Task::Read(mut piece) => {
                    while !piece.is_void() {
                        let (file, into, at) = piece.rest();
                        let read = rustix::io::pread(file, into, at).map_err(io::Error::from);
                        if piece.advance(read) {
                            break;
                        }
                    }
                    queue.finish(piece);
                }
            }
        }
    }
}
