//! What is to be read: blocks that are not open yet, and pieces of those that are.
//! All reads of all requests share it, so that the disk is kept busy by whatever
//! there is.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tpad_manifest::BlockId;

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
    most_prefetches: usize,
    /// Pieces and blocks that were seen to: as long as it grows, the disk works.
    progress: AtomicU64,
}

/// What wakes a worker that waits for its device.
pub(super) type Bell = Arc<OwnedFd>;

#[derive(Debug, Default)]
struct State {
    demand: Line,
    prefetch: Line,
    /// Pieces of prefetches in flight.
    prefetching: usize,
    /// Prefetches whose files are being opened, and whether someone waits by now.
    opening: Vec<(BlockId, bool)>,
    /// Which workers with a bell found nothing when they last came by.
    hungry: Vec<bool>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Line {
    pieces: VecDeque<Piece>,
    jobs: VecDeque<Job>,
}

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
    /// Nothing, ever again.
    Closed,
}

impl Queue {
    /// A queue for workers that have `in_flight` pieces in flight together.
    pub(super) fn new(in_flight: usize, bells: Vec<Bell>) -> Arc<Self> {
        let state = State { hungry: vec![false; bells.len()], ..State::default() };
        Arc::new(Self {
            state: Mutex::new(state),
            ready: Condvar::new(),
            bells,
            most_prefetches: (in_flight / 2).max(1),
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
        let urgency = if state.opened(&id, urgency) { Urgency::Demand } else { urgency };
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
        let opening = state.opening.iter_mut().filter(|(opening, _)| opening == id);
        opening.for_each(|(_, hurried)| *hurried = true);
        self.wake(state, moved);
    }

    /// Waits for something to do. `None` when the queue is closed.
    pub(super) fn wait(&self) -> Option<Task> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(task) = state.take(self.most_prefetches) {
                return Some(task);
            }
            state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Something to do for the worker with this bell, which does not wait here.
    pub(super) fn take(&self, bell: usize) -> Taken {
        let mut state = self.lock();
        if state.closed {
            return Taken::Closed;
        }
        let task = state.take(self.most_prefetches);
        // Also when it took what another was woken for: it may be full with it, and
        // woken for the next it would leave that to nobody.
        if let Some(hungry) = state.hungry.get_mut(bell) {
            *hungry = task.is_none();
        }
        task.map_or(Taken::Nothing, Taken::Task)
    }

    /// Takes back a piece that was read, or is not to be read any more.
    pub(super) fn finish(&self, piece: Piece) {
        let urgency = piece.urgency;
        piece.finish();
        self.progress.fetch_add(1, Ordering::Relaxed);
        if urgency == Urgency::Prefetch {
            let mut state = self.lock();
            state.prefetching -= 1;
            // One that waited for the place, beside the worker that comes back now.
            self.wake(state, 1);
        }
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

impl State {
    fn line(&mut self, urgency: Urgency) -> &mut Line {
        match urgency {
            Urgency::Demand => &mut self.demand,
            Urgency::Prefetch => &mut self.prefetch,
        }
    }

    fn take(&mut self, most_prefetches: usize) -> Option<Task> {
        if let Some(task) = self.demand.next(Urgency::Demand) {
            return Some(task);
        }
        if self.prefetching >= most_prefetches {
            return None;
        }
        let task = self.prefetch.next(Urgency::Prefetch)?;
        match &task {
            Task::Read(_) => self.prefetching += 1,
            Task::Open(job, _) => self.opening.push((job.id, false)),
        }
        Some(task)
    }

    /// A file was opened, or could not be: whether someone waits for it by now.
    fn opened(&mut self, id: &BlockId, urgency: Urgency) -> bool {
        let opening = self.opening.iter().position(|(opening, _)| opening == id);
        match opening.filter(|_| urgency == Urgency::Prefetch) {
            Some(at) => self.opening.swap_remove(at).1,
            None => urgency == Urgency::Demand,
        }
    }
}

impl Line {
    fn next(&mut self, urgency: Urgency) -> Option<Task> {
        if let Some(mut piece) = self.pieces.pop_front() {
            piece.urgency = urgency;
            return Some(Task::Read(piece));
        }
        loop {
            let job = self.jobs.pop_front()?;
            if !job.is_forsaken() {
                return Some(Task::Open(job, urgency));
            }
        }
    }
}

/// Moves what fits to the end of another queue, in order.
fn move_all<T>(from: &mut VecDeque<T>, to: &mut VecDeque<T>, fits: impl Fn(&T) -> bool) {
    if !from.iter().any(&fits) {
        return;
    }
    for item in std::mem::take(from) {
        if fits(&item) { to.push_back(item) } else { from.push_back(item) }
    }
}
