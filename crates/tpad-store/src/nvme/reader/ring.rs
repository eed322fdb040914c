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

mod flying;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use io_uring::{EnterFlags, IoUring, opcode, types};
use rustix::event::{EventfdFlags, PollFlags, eventfd};

use self::flying::Flying;
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
pub(super) struct Ring {
    ring: IoUring,
    bell: Bell,
    /// Whether the bell is watched.
    armed: bool,
    flying: Flying,
    /// Back, not checked yet.
    back: Vec<Piece>,
    /// Not taken by the ring, which fails.
    unread: Vec<Piece>,
    index: usize,
    /// Comes before the ring is entered and may fail: the kernel does it for no test.
    #[cfg(test)]
    pub(super) entering: Box<dyn FnMut() -> io::Result<()> + Send>,
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
        let bell = Arc::new(bell);
        let (back, unread) = (Vec::new(), Vec::new());
        Ok(Self {
            ring,
            bell,
            armed: false,
            flying: Flying::new(depth),
            back,
            unread,
            index,
            #[cfg(test)]
            entering: Box::new(|| Ok(())),
        })
    }

    /// What wakes the ring's thread.
    pub(super) fn bell(&self) -> Bell {
        Arc::clone(&self.bell)
    }

    fn may_take(&self) -> bool {
        self.flying.count() + self.back.len() < self.flying.places()
    }

    /// Has the kernel read the rest of a piece.
    fn read(&mut self, piece: Piece) -> io::Result<()> {
        let placed = self.flying.insert(piece);
        let full = || io::Error::other("more reads than the ring has places");
        let (key, piece) = placed.ok_or_else(full)?;
        let (file, into, at) = piece.rest();
        // One read is at most a piece, so this cuts nothing.
        let bytes = u32::try_from(into.len()).unwrap_or(u32::MAX);
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), into.as_mut_ptr(), bytes);
        let entry = read.offset(at).build().user_data(key);
        // SAFETY: file and memory belong to the piece, which stays in `flying` until
        // the completion with this key (`drop` waits for it or leaks), or until `settle`
        // takes back what is never submitted: the descriptor stays open, and the memory
        // neither moves (it is a page on the heap or part of a slot's mapping) nor is
        // anybody else's.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // The kernel has not heard of it.
            self.unread.extend(self.flying.land(key));
            return Err(io::Error::other("the ring is full"));
        }
        self.flying.pushed(key);
        Ok(())
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
        pushed.map_err(|_full| io::Error::other("the ring is full"))?;
        self.flying.pushed(BELL);
        self.armed = true;
        Ok(())
    }

    /// Tells the kernel what was pushed, and waits for so many completions.
    fn enter(&mut self, wait: usize) -> io::Result<()> {
        if wait == 0 && self.ring.submission().is_empty() {
            return Ok(());
        }
        let entered = self.injected().and_then(|()| self.ring.submit_and_wait(wait));
        // Also when it fails: what it has taken until then the kernel has.
        self.flying.submitted_but(self.ring.submission().len());
        unless_passing(entered)
    }

    /// Waits for a completion, and tells the kernel nothing of what was pushed.
    fn wait(&mut self) -> io::Result<()> {
        let (submit, wait, events) = (0, 1, EnterFlags::GETEVENTS.bits());
        let entered = self.injected().and_then(|()| {
            // SAFETY: it submits nothing and passes no argument.
            unsafe { self.ring.submitter().enter::<()>(submit, wait, events, None) }
        });
        unless_passing(entered)
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
            let Some(mut piece) = self.flying.land(key) else { continue };
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
            } else if closed && self.flying.count() == 0 {
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
        let unheard = |piece| queue.give_back(piece);
        self.settle(unheard, |mut piece, read| match piece.advance(read) {
            true => queue.finish(piece),
            false => queue.give_back(piece),
        });
        // What the kernel has not let go of; the drop sees to its memory.
        self.flying.pieces().for_each(|piece| queue.abandon(piece));
    }

    /// Takes back what the kernel never heard of, and waits for what it still has of ours,
    /// as far as it says when it is done. The ring may only be waited on after this: to
    /// enter it would submit what was taken back.
    fn settle(
        &mut self,
        unheard: impl FnMut(Piece),
        mut done: impl FnMut(Piece, io::Result<usize>),
    ) {
        self.flying.retract().into_iter().for_each(unheard);
        loop {
            while let Some((key, result)) = self.completion() {
                if let Some(piece) = self.flying.land(key) {
                    done(piece, outcome(result));
                }
            }
            if self.flying.count() == 0 || self.wait().is_err() {
                return;
            }
        }
    }

    #[cfg(test)]
    fn injected(&mut self) -> io::Result<()> {
        (self.entering)()
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests inject failures here")]
    fn injected(&mut self) -> io::Result<()> {
        Ok(())
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
        self.settle(drop, |piece, _| drop(piece));
        self.flying.leak();
    }
}

/// What a read came to, from its completion.
fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result)
        .map_err(|_negative| io::Error::from_raw_os_error(result.saturating_neg()))
}

/// What entering the ring came to. After a signal, or when the kernel is short of
/// something for now, the next turn enters again.
fn unless_passing(entered: io::Result<usize>) -> io::Result<()> {
    use io::ErrorKind::{Interrupted, ResourceBusy, WouldBlock};
    match entered {
        Err(error) if !matches!(error.kind(), Interrupted | WouldBlock | ResourceBusy) => {
            Err(error)
        }
        _ => Ok(()),
    }
}
