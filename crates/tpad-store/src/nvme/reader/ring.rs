//! Reading through io_uring: each ring belongs to one thread, which keeps a number
//! of reads in flight and checks what is back meanwhile.
//!
//! The one hazard is memory that the kernel still writes to when its owner is
//! gone. Here a piece owns the memory that it is read into ([`Piece`]: a page of
//! its own, or a [`SlotPart`](crate::arena::SlotPart), which keeps the whole slot
//! from coming free), and the ring owns the piece from before the kernel hears of
//! it until the kernel has said that it is done. Whoever waits for the block is not
//! part of this: their leaving only makes the answer superfluous.
#![expect(unsafe_code, reason = "the kernel is given addresses to write to")]

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, PollFlags, eventfd};

use super::Work;
use super::block::Piece;
use super::queue::{Bell, Queue, Taken, Task};
use super::threads::{THREADS, stand_in};

/// Pieces in flight over all rings: with so many of 4 MiB the disk of
/// docs/performance.md ("Cold reads") gives as much as to eight threads that only read.
pub(super) const IN_FLIGHT: usize = 16;

/// The key of the read that is none: the bell.
const BELL: u64 = u64::MAX;

/// A ring, its bell, and what the kernel has of ours.
///
/// **Invariant:** a piece is in `flying` from before its read is pushed until the
/// completion with its key was taken, and its memory does not move meanwhile.
pub(super) struct Ring {
    ring: IoUring,
    bell: Bell,
    /// Whether the bell is watched.
    armed: bool,
    /// By key.
    flying: Vec<Option<Piece>>,
    /// Back, not checked yet.
    back: Vec<Piece>,
    /// Not taken by the ring, which fails.
    unread: Vec<Piece>,
    index: usize,
    /// How often entering the ring is to fail: the kernel does it for no test.
    #[cfg(test)]
    pub(super) faults: Arc<std::sync::atomic::AtomicUsize>,
}

impl Ring {
    /// A ring of so many reads in flight, whose bell is the queue's `index`th.
    ///
    /// # Errors
    /// When the kernel has no io_uring, or does not let this process use it.
    pub(super) fn new(depth: usize, index: usize) -> io::Result<Self> {
        let entries = u32::try_from(depth + 1).map_err(io::Error::other)?;
        let ring = IoUring::new(entries)?;
        let bell: OwnedFd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flying = (0..depth).map(|_| None).collect();
        let bell = Arc::new(bell);
        let (back, unread) = (Vec::new(), Vec::new());
        Ok(Self {
            ring,
            bell,
            armed: false,
            flying,
            back,
            unread,
            index,
            #[cfg(test)]
            faults: Arc::default(),
        })
    }

    /// What wakes the ring's thread.
    pub(super) fn bell(&self) -> Bell {
        Arc::clone(&self.bell)
    }

    fn in_flight(&self) -> usize {
        self.flying.iter().flatten().count()
    }

    fn may_take(&self) -> bool {
        self.in_flight() + self.back.len() < self.flying.len()
    }

    /// Has the kernel read the rest of a piece.
    fn read(&mut self, piece: Piece) -> io::Result<()> {
        let free = self.flying.iter().position(Option::is_none);
        let key = free.ok_or_else(|| io::Error::other("more reads than the ring has places"))?;
        let piece = self.flying[key].insert(piece);
        let (file, into, at) = piece.rest();
        // One read is at most a piece, so this cuts nothing.
        let bytes = u32::try_from(into.len()).unwrap_or(u32::MAX);
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), into.as_mut_ptr(), bytes);
        let entry = read.offset(at).build().user_data(key as u64);
        // SAFETY: file and memory belong to the piece, which stays in `flying` until
        // the completion with this key (`landed`; `drop` waits for it or leaks):
        // the descriptor stays open, and the memory neither moves (it is a page on the
        // heap or part of a slot's mapping) nor is anybody else's.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.map_err(|_full| {
            // The kernel has not heard of it.
            self.unread.extend(self.flying[key].take());
            io::Error::other("the ring is full")
        })
    }

    /// Watches the bell, unless it is watched.
    fn arm(&mut self) -> io::Result<()> {
        if self.armed {
            return Ok(());
        }
        let watched = u32::from(PollFlags::IN.bits());
        let entry = opcode::PollAdd::new(types::Fd(self.bell.as_raw_fd()), watched).build();
        let entry = entry.user_data(BELL);
        // SAFETY: it names no memory, and the descriptor lives as long as the ring.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        self.armed = pushed.is_ok();
        pushed.map_err(|_full| io::Error::other("the ring is full"))
    }

    /// Tells the kernel what was pushed, and waits for so many completions.
    fn enter(&mut self, wait: usize) -> io::Result<()> {
        if wait == 0 && self.ring.submission().is_empty() {
            return Ok(());
        }
        #[cfg(test)]
        self.fault()?;
        match self.ring.submit_and_wait(wait) {
            Ok(_) => Ok(()),
            // A signal, or the kernel is short of something for now: the next turn
            // enters again.
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A completion, if there is one: its key and result.
    fn completion(&mut self) -> Option<(u64, i32)> {
        let entry = self.ring.completion().next()?;
        Some((entry.user_data(), entry.result()))
    }

    /// Takes all completions that are there.
    fn completed(&mut self) -> io::Result<()> {
        while let Some((key, result)) = self.completion() {
            if key == BELL {
                self.armed = false;
                // Back to silence; what it rang for is in the queue.
                let _rung = rustix::io::read(&self.bell, &mut [0; 8]);
                continue;
            }
            let Some(mut piece) = self.landed(key) else { continue };
            if piece.advance(outcome(result)) {
                self.back.push(piece);
            } else {
                self.read(piece)?;
            }
        }
        Ok(())
    }

    fn run(&mut self, queue: &Queue) -> io::Result<()> {
        loop {
            let mut closed = false;
            while self.may_take() {
                match queue.take(self.index) {
                    Taken::Task(Task::Open(job, urgency)) => {
                        // Others are read while a file is looked for.
                        let entered = self.enter(0);
                        queue.begin(job, urgency);
                        entered?;
                    }
                    Taken::Task(Task::Read(piece)) if piece.is_void() => queue.finish(piece),
                    Taken::Task(Task::Read(piece)) => self.read(piece)?,
                    Taken::Nothing => break,
                    Taken::Closed => {
                        closed = true;
                        break;
                    }
                }
            }
            if let Some(piece) = self.back.pop() {
                // Others are read while this one is checked.
                let entered = self.enter(0);
                queue.finish(piece);
                entered?;
            } else if closed && self.in_flight() == 0 {
                return Ok(());
            } else {
                self.arm()?;
                self.enter(1)?;
            }
            self.completed()?;
        }
    }

    /// Hands everything on: what is read to be checked, the rest to be read by others.
    fn leave(&mut self, queue: &Queue) {
        self.unread.drain(..).for_each(|piece| queue.give_back(piece));
        self.back.drain(..).for_each(|piece| queue.finish(piece));
        self.settle(|mut piece, read| match piece.advance(read) {
            true => queue.finish(piece),
            false => queue.give_back(piece),
        });
        // What the kernel has not let go of; the drop sees to its memory.
        self.flying.iter().flatten().for_each(|piece| queue.abandon(piece));
    }

    /// Waits for what the kernel still has of ours, as far as it says when it is done.
    fn settle(&mut self, mut done: impl FnMut(Piece, io::Result<usize>)) {
        loop {
            while let Some((key, result)) = self.completion() {
                if let Some(piece) = self.landed(key) {
                    done(piece, outcome(result));
                }
            }
            if self.in_flight() == 0 || self.enter(1).is_err() {
                return;
            }
        }
    }

    /// The piece that the kernel is done with.
    fn landed(&mut self, key: u64) -> Option<Piece> {
        self.flying.get_mut(usize::try_from(key).ok()?)?.take()
    }

    #[cfg(test)]
    fn fault(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering::SeqCst;
        match self.faults.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(io::Error::other("injected failure")),
            Err(_none) => Ok(()),
        }
    }
}

impl Work for Ring {
    fn work(mut self: Box<Self>, queue: &Queue) {
        let Err(error) = self.run(queue) else { return };
        if queue.fail(error.to_string(), THREADS) {
            // Never seen. A ring that fails alone is no reason to trust the others.
            tracing::warn!(level = "nvme", %error, "a ring failed: threads read from here on");
            stand_in(queue, || self.leave(queue));
        } else {
            self.leave(queue);
        }
    }
}

impl Drop for Ring {
    /// Waits for what the kernel still has of ours: at a panic, or after a failure.
    fn drop(&mut self) {
        self.settle(|piece, _| drop(piece));
        // Nobody says any more when the kernel is done with them: what it may write to
        // is never given back.
        self.flying.drain(..).flatten().for_each(std::mem::forget);
    }
}

/// What a read came to, from its completion.
fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result)
        .map_err(|_negative| io::Error::from_raw_os_error(result.saturating_neg()))
}

fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, ResourceBusy, WouldBlock};
    matches!(error.kind(), Interrupted | WouldBlock | ResourceBusy)
}
