//! What is to be read: blocks that are not open yet, and pieces of those that are.
//! All reads of all requests share it, so that the disk is kept busy by whatever
//! there is.

mod state;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tpad_manifest::BlockId;

use self::state::{State, move_all, prefetches_of};
use super::block::{Job, Piece};
use crate::Urgency;

/// Work for whoever reads.
///
/// Blocks are begun in order of arrival, demand before prefetch, and a block that
/// was begun goes before one that was not: one block early is worth more than two
/// halves. Prefetches take at most half of what is in flight, so that the disk's
/// own queue, which nobody can reorder, is never full of them when a demand comes.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// For workers that sleep on it.
    ready: Condvar,
    /// For workers that sleep elsewhere.
    bells: Vec<Bell>,
    /// Pieces and blocks that were seen to: as long as it grows, the disk works.
    progress: AtomicU64,
}

/// What wakes a worker that waits for its device.
pub(super) type Bell = Arc<OwnedFd>;

/// Something to do.
#[derive(Debug)]
pub(super) enum Task {
    /// Open a block's file, and hand its pieces to [`Queue::begin`].
    Open(Job, Urgency),
    /// Read a piece, and hand it to [`Queue::finish`].
    Read(Piece),
}

/// What a worker that does not wait gets.
#[derive(Debug)]
pub(super) enum Taken {
    /// Something to do.
    Task(Task),
    /// Nothing; its bell rings when there is something.
    Nothing,
    /// Nothing, ever again: the queue is closed, or left to others.
    Closed,
}

impl Queue {
    /// A queue for workers that have `in_flight` pieces in flight together.
    pub(super) fn new(in_flight: usize, bells: Vec<Bell>) -> Arc<Self> {
        let state = State {
            hungry: vec![false; bells.len()],
            most_prefetches: prefetches_of(in_flight),
            ..State::default()
        };
        Arc::new(Self {
            state: Mutex::new(state),
            ready: Condvar::new(),
            bells,
            progress: AtomicU64::new(0),
        })
    }

    /// Adds a block. Closed, the queue drops it, and with it the answer's sender.
    pub(super) fn push(&self, job: Job, urgency: Urgency) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        state.line(urgency).jobs.push_back(job);
        self.wake(state, 1);
    }

    /// Opens a block's file and adds its pieces.
    pub(super) fn begin(&self, job: Job, urgency: Urgency) {
        let id = job.id;
        let opened = job.open();
        self.progress.fetch_add(1, Ordering::Relaxed);
        let mut state = self.lock();
        // Someone may have begun to wait for it while it was opened.
        let urgency = state.opening.back(&id, urgency);
        let Some(pieces) = opened else { return };
        if state.closed {
            return;
        }
        // Whoever opened it takes one itself.
        let others = pieces.len().saturating_sub(1);
        state.line(urgency).pieces.extend(pieces);
        self.wake(state, others);
    }

    /// Someone waits for this block now, which was read for nobody.
    pub(super) fn hurry(&self, id: &BlockId) {
        let mut state = self.lock();
        let State { demand, prefetch, .. } = &mut *state;
        let before = demand.pieces.len() + demand.jobs.len();
        move_all(&mut prefetch.pieces, &mut demand.pieces, |piece| piece.id() == id);
        move_all(&mut prefetch.jobs, &mut demand.jobs, |job| job.id == *id);
        let moved = demand.pieces.len() + demand.jobs.len() - before;
        // What is out goes on as it is, and is as urgent should it come back unread.
        state.opening.hurry(id);
        state.flying.hurry(id);
        self.wake(state, moved);
    }

    /// Waits for something to do. `None` when the queue is closed.
    pub(super) fn wait(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(task) = state.take() {
                return Some(task);
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Something to do for the worker with this bell, which does not wait here.
    pub(super) fn take(&self, bell: usize) -> Taken {
        let mut state = self.lock();
        if state.closed || state.failed.is_some() {
            return Taken::Closed;
        }
        let task = state.take();
        // Also when it took what another was woken for: it may be full with it, and
        // woken for the next it would leave that to nobody.
        if let Some(hungry) = state.hungry.get_mut(bell) {
            *hungry = task.is_none();
        }
        task.map_or(Taken::Nothing, Taken::Task)
    }

    /// Takes back a piece that was read, or is not to be read any more.
    pub(super) fn finish(&self, piece: Piece) {
        let (id, urgency) = (*piece.id(), piece.urgency);
        piece.finish();
        self.progress.fetch_add(1, Ordering::Relaxed);
        if urgency == Urgency::Prefetch {
            let mut state = self.lock();
            state.flying.back(&id, urgency);
            // One that waited for the place, beside the worker that comes back now.
            self.wake(state, 1);
        }
    }

    /// Takes back a piece of which not all was read, to be read by another.
    pub(super) fn give_back(&self, piece: Piece) {
        let mut state = self.lock();
        // Someone may have begun to wait for its block while it was in flight.
        let urgency = state.flying.back(piece.id(), piece.urgency);
        if state.closed {
            drop(state);
            piece.abandon();
            return;
        }
        state.line(urgency).pieces.push_front(piece);
        self.wake(state, 1);
    }

    /// A piece that its device keeps: its block is not read any more.
    pub(super) fn abandon(&self, piece: &Piece) {
        piece.abandon();
        if piece.urgency == Urgency::Prefetch {
            let mut state = self.lock();
            state.flying.back(piece.id(), piece.urgency);
            self.wake(state, 1);
        }
    }

    /// A worker with a bell failed, and there may be no better luck with others of its
    /// kind: from here on they take nothing more, and those that take over have
    /// `in_flight` pieces in flight. Whether it was the first.
    pub(super) fn fail(&self, problem: String, in_flight: usize) -> bool {
        let mut state = self.lock();
        let first = state.failed.is_none();
        state.failed.get_or_insert(problem);
        state.most_prefetches = prefetches_of(in_flight);
        state.hungry.fill(true);
        self.wake(state, usize::MAX);
        first
    }

    /// Why workers with bells take nothing more.
    pub(super) fn failed(&self) -> Option<String> {
        self.lock().failed.clone()
    }

    /// Drops what nobody waits for any more: its slots come free though no worker comes
    /// by, on a disk that hangs or while others go first.
    pub(super) fn purge(&self) {
        let mut state = self.lock();
        let (mut jobs, mut pieces) = (VecDeque::new(), VecDeque::new());
        let State { demand, prefetch, .. } = &mut *state;
        for line in [demand, prefetch] {
            move_all(&mut line.jobs, &mut jobs, Job::is_forsaken);
            move_all(&mut line.pieces, &mut pieces, Piece::is_void);
        }
        drop(state);
        // Not under the lock: slots come free.
        pieces.into_iter().for_each(Piece::finish);
    }

    /// How much was seen to so far.
    pub(super) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Gives up what was not begun, and sends the workers home once what they have
    /// in flight is back.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let dropped = (std::mem::take(&mut state.demand), std::mem::take(&mut state.prefetch));
        state.hungry.fill(true);
        self.wake(state, usize::MAX);
        // Not under the lock: slots come free, and who waits for answers is woken.
        drop(dropped);
    }

    /// Wakes up to so many workers.
    fn wake(&self, mut state: MutexGuard<'_, State>, count: usize) {
        let mut ring = Vec::new();
        for (hungry, bell) in state.hungry.iter_mut().zip(&self.bells) {
            if ring.len() < count && std::mem::take(hungry) {
                ring.push(bell);
            }
        }
        drop(state);
        if count == 1 {
            self.ready.notify_one();
        } else if count > 1 {
            self.ready.notify_all();
        }
        for bell in ring {
            // It fails when the counter is full, and then the bell rings already.
            let _rings = rustix::io::write(bell, &1u64.to_ne_bytes());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
