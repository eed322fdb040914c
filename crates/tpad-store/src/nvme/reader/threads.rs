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
