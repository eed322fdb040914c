//! Copies that nobody waits for: made piece by piece, while no other copy is under way.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use super::QUEUED;
use crate::{Completion, CudaError, HostCopy, Stream};

/// Bytes of a piece. A copy that somebody waits for begins behind two of them at most, which
/// take 0.15 ms at 55 GB/s.
const PIECE_BYTES: u64 = 4 << 20;
/// Bytes that are under way at a time: one piece is copied while the host hears of the other.
const UNDER_WAY_BYTES: u64 = 2 * PIECE_BYTES;
/// ... and pieces, where blocks are small.
pub(super) const UNDER_WAY: usize = 16;

/// A copy that nobody waits for, as long as nobody does.
#[derive(Debug, Default)]
pub struct Errand {
    hurried: AtomicBool,
    turns: OnceLock<Arc<Turns>>,
}

impl Errand {
    /// Somebody waits for it from now on: the rest of it is copied at once.
    pub fn hurry(&self) {
        self.hurried.store(true, Ordering::Release);
        if let Some(turns) = self.turns.get() {
            // Under the lock: whoever is about to wait has seen it, or is woken.
            let _state = turns.lock();
            turns.changed.notify_all();
        }
    }

    /// Whether somebody waits for it.
    #[must_use]
    pub fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::Acquire)
    }
}

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Copies that somebody waits for, queued or under way.
    pressing: usize,
    queue: VecDeque<Job>,
    under_way_bytes: u64,
    under_way: usize,
    ended: bool,
}

/// What is called with the outcome: whether all of it was copied, or it was given up.
type Done = Box<dyn FnOnce(Result<bool, CudaError>) + Send>;

/// A copy of which a part is made.
pub(super) struct Job {
    pub(super) copy: HostCopy,
    pub(super) errand: Arc<Errand>,
    /// Whether it is still of use to anybody.
    pub(super) wanted: Box<dyn Fn() -> bool + Send>,
    pub(super) done: Done,
    /// Where the next piece begins.
    pub(super) at: usize,
    pub(super) failed: Arc<Failure>,
}

/// What went wrong with a copy: the first error of a piece, or the first sticky one.
#[derive(Debug, Default)]
pub(super) struct Failure(Mutex<Option<CudaError>>);

/// A piece of a copy, or its end alone.
struct Piece {
    copy: Option<HostCopy>,
    bytes: u64,
    failed: Arc<Failure>,
    /// With the last one what is left of the job, and whether all of the copy was made.
    end: Option<(Job, bool)>,
}

/// A piece under way.
pub(super) struct Sent {
    completion: Option<Box<dyn Completion>>,
    bytes: u64,
    failed: Arc<Failure>,
    end: Option<(Done, bool)>,
}

/// A copy that somebody waits for, until it is over.
#[derive(Debug)]
pub(super) struct Pressing(Arc<Turns>);

impl Pressing {
    pub(super) fn new(turns: &Arc<Turns>) -> Self {
        turns.lock().pressing += 1;
        Self(Arc::clone(turns))
    }
}

impl Drop for Pressing {
    fn drop(&mut self) {
        self.0.lock().pressing -= 1;
        self.0.changed.notify_all();
    }
}

impl Turns {
    /// Has the copy made when there is time for it.
    pub(super) fn add(self: &Arc<Self>, job: Job) {
        // An errand is for one copy.
        let _ = job.errand.turns.set(Arc::clone(self));
        let mut state = self.lock();
        if state.queue.len() >= QUEUED {
            drop(state);
            return (job.done)(Err(CudaError::Busy));
        }
        state.queue.push_back(job);
        drop(state);
        self.changed.notify_all();
    }

    /// What is queued is copied now, and nothing after it.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// The next piece; waits until there is one that may be copied.
    fn next(&self) -> Option<Piece> {
        let mut state = self.lock();
        loop {
            if state.ended && state.queue.is_empty() {
                return None;
            }
            if let Some(piece) = state.next() {
                return Some(piece);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn arrived(&self, bytes: u64) {
        let mut state = self.lock();
        state.under_way_bytes -= bytes;
        state.under_way -= 1;
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> Option<Piece> {
        if self.under_way_bytes >= UNDER_WAY_BYTES || self.under_way >= UNDER_WAY {
            return None;
        }
        let hurried = self.queue.iter().position(|job| job.errand.is_hurried());
        let idle = self.pressing == 0 || self.ended;
        let unwanted = || self.queue.iter().position(|job| !(job.wanted)());
        let at = hurried.or_else(|| if idle { Some(0) } else { unwanted() })?;
        let job = self.queue.get_mut(at)?;
        let piece = job.piece((job.wanted)() && job.failed.get().is_none());
        let (copy, bytes, failed) = match piece {
            Some((copy, bytes, false)) => {
                let failed = Arc::clone(&job.failed);
                self.under_way_bytes += bytes;
                self.under_way += 1;
                return Some(Piece { copy: Some(copy), bytes, failed, end: None });
            }
            Some((copy, bytes, true)) => (Some(copy), bytes, Arc::clone(&job.failed)),
            None => (None, 0, Arc::clone(&job.failed)),
        };
        let whole = copy.is_some();
        let job = self.queue.remove(at)?;
        self.under_way_bytes += bytes;
        self.under_way += 1;
        Some(Piece { copy, bytes, failed, end: Some((job, whole)) })
    }
}

impl Failure {
    fn add(&self, error: CudaError) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One after which nothing may be used again is not to be missed.
        if known.as_ref().is_none_or(|known| error.is_sticky() && !known.is_sticky()) {
            *known = Some(error);
        }
    }

    fn get(&self) -> Option<CudaError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Job {
    /// The next piece, its bytes, and whether it is the last; `None` if it is not to go on.
    /// Once somebody waits for it, all that is left is one.
    fn piece(&mut self, goes_on: bool) -> Option<(HostCopy, u64, bool)> {
        let HostCopy { from, to, offset } = &self.copy;
        let most = usize::try_from(PIECE_BYTES).ok().filter(|_| !self.errand.is_hurried());
        let most = most.unwrap_or(usize::MAX);
        let end = self.at.saturating_add(most).min(from.len());
        if !goes_on || self.at >= end {
            return None;
        }
        let (piece, offset) = (from.slice(self.at..end), offset + self.at as u64);
        let bytes = piece.len() as u64;
        let copy = HostCopy { from: piece, to: Arc::clone(to), offset };
        let last = end == from.len();
        self.at = end;
        Some((copy, bytes, last))
    }
}

/// Submits pieces, each when its turn has come.
pub(super) fn submit_all(turns: &Turns, stream: &dyn Stream, sent: &SyncSender<Sent>) {
    while let Some(Piece { copy, bytes, failed, end }) = turns.next() {
        let completion = match copy.map(|copy| stream.copy(copy)).transpose() {
            Ok(completion) => completion,
            Err(error) => {
                failed.add(error);
                None
            }
        };
        // What else the job had is let go of here, where nothing is locked.
        let end = end.map(|(Job { done, .. }, whole)| (done, whole));
        if sent.send(Sent { completion, bytes, failed, end }).is_err() {
            // The other thread has panicked. The completion has waited as it was dropped.
            turns.arrived(bytes);
        }
    }
}

/// Waits for pieces, in the order in which they were submitted.
pub(super) fn await_all(turns: &Turns, sent: &Receiver<Sent>) {
    for Sent { completion, bytes, failed, end } in sent {
        if let Some(completion) = completion {
            if let Err(error) = completion.wait() {
                failed.add(error.unseen());
            }
            // The source is let go of before anyone hears that it may be.
            drop(completion);
        }
        turns.arrived(bytes);
        if let Some((done, whole)) = end {
            done(failed.get().map_or(Ok(whole), Err));
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pressing, queue, under_way_bytes, .. } = self;
        let mut state = f.debug_struct("State");
        state.field("pressing", pressing).field("queued", &queue.len());
        state.field("under_way_bytes", under_way_bytes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DeviceName, Slab, StandIn};
    use bytes::Bytes;
    use std::sync::mpsc;

    const MIB: usize = 1 << 20;

    struct Scene {
        _directory: tempfile::TempDir,
        turns: Arc<Turns>,
        slab: Arc<dyn Slab>,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let driver = StandIn::on(directory.path(), 1, 64 << 20);
            let device = driver.open(&DeviceName::Index(0)).expect("there is one");
            let slab = device.create(64 << 20).expect("there is room");
            Self { _directory: directory, turns: Arc::default(), slab }
        }

        /// A copy of so many bytes, wanted as long as somebody has the other end.
        fn add(&self, bytes: usize) -> (Arc<Errand>, Arc<()>, mpsc::Receiver<Outcome>) {
            let (over, outcome) = mpsc::sync_channel(1);
            let (errand, wanted) = (Arc::<Errand>::default(), Arc::new(()));
            let weak = Arc::downgrade(&wanted);
            self.turns.add(Job {
                copy: HostCopy {
                    from: Bytes::from(vec![7; bytes]),
                    to: Arc::clone(&self.slab),
                    offset: 4096,
                },
                errand: Arc::clone(&errand),
                wanted: Box::new(move || weak.strong_count() > 0),
                done: Box::new(move |result| over.send(result).expect("it is awaited")),
                at: 0,
                failed: Arc::default(),
            });
            (errand, wanted, outcome)
        }

        /// The bytes of the next piece, if one may be copied, and whether it ends its copy.
        fn next(&self) -> Option<(u64, Option<bool>)> {
            let piece = self.turns.lock().next()?;
            let end = piece.end.map(|(job, whole)| {
                (job.done)(Ok(whole));
                whole
            });
            Some((piece.bytes, end))
        }
    }

    type Outcome = Result<bool, CudaError>;

    #[test]
    fn pieces_wait_for_every_copy_that_somebody_waits_for_and_for_their_turn() {
        let scene = Scene::new();
        let (_, _wanted, outcome) = scene.add(12 * MIB);
        let (one, two) = (Pressing::new(&scene.turns), Pressing::new(&scene.turns));
        assert_eq!(scene.next(), None);
        drop(one);
        assert_eq!(scene.next(), None, "there is one more");
        drop(two);
        assert_eq!(scene.next(), Some((PIECE_BYTES, None)));
        assert_eq!(scene.next(), Some((PIECE_BYTES, None)));
        assert_eq!(scene.next(), None, "as many are under way as may be");
        scene.turns.arrived(PIECE_BYTES);
        let pressing = Pressing::new(&scene.turns);
        assert_eq!(scene.next(), None, "between two pieces");
        drop(pressing);
        assert_eq!(scene.next(), Some((4 << 20, Some(true))));
        assert_eq!(outcome.recv().expect("it ended"), Ok(true));
    }

    #[test]
    fn who_is_hurried_goes_first_and_at_once() {
        let scene = Scene::new();
        let (_, _first, _) = scene.add(16 * MIB);
        let (errand, _second, outcome) = scene.add(9 * MIB);
        assert_eq!(scene.next(), Some((PIECE_BYTES, None)));
        let _pressing = Pressing::new(&scene.turns);
        assert_eq!(scene.next(), None);
        errand.hurry();
        assert_eq!(scene.next(), Some((9 << 20, Some(true))), "not in pieces any more");
        assert_eq!(outcome.recv().expect("it ended"), Ok(true));
        assert_eq!(scene.next(), None, "nobody waits for the first");
    }

    #[test]
    fn what_nobody_wants_ends_between_two_pieces_whoever_presses() {
        let scene = Scene::new();
        let (_, wanted, outcome) = scene.add(16 * MIB);
        assert_eq!(scene.next(), Some((PIECE_BYTES, None)));
        let _pressing = Pressing::new(&scene.turns);
        drop(wanted);
        assert_eq!(scene.next(), Some((0, Some(false))));
        assert_eq!(outcome.recv().expect("it ended"), Ok(false));
        assert_eq!(scene.next(), None);
    }

    #[test]
    fn an_error_after_which_nothing_may_be_used_is_not_missed() {
        let harmless = CudaError::Busy;
        let sticky = CudaError::Ended.unseen();
        assert!(!harmless.is_sticky() && sticky.is_sticky());
        let failure = Failure::default();
        failure.add(harmless.clone());
        failure.add(CudaError::ReadOnly);
        assert_eq!(failure.get(), Some(harmless));
        failure.add(sticky.clone());
        failure.add(CudaError::ReadOnly);
        assert_eq!(failure.get(), Some(sticky));
    }

    #[test]
    fn a_copy_in_pieces_is_whole_and_one_that_fails_says_so_once_all_of_it_is_over() {
        let scene = Scene::new();
        let driver = StandIn::on(scene._directory.path(), 1, 64 << 20);
        let device = driver.open(&DeviceName::Index(0)).expect("there is one");
        let (sent, to_await) = mpsc::sync_channel(UNDER_WAY);
        let turns = Arc::clone(&scene.turns);
        let awaiting = std::thread::spawn(move || await_all(&turns, &to_await));
        let (turns, stream) = (Arc::clone(&scene.turns), device.stream().expect("a stream"));
        let submitting = std::thread::spawn(move || submit_all(&turns, &*stream, &sent));
        let (_, _wanted, outcome) = scene.add(20 * MIB + 5);
        assert_eq!(outcome.recv().expect("it ended"), Ok(true));
        let mut there = vec![0; 20 * MIB + 6];
        scene.slab.read(4096, &mut there).expect("it lies there");
        assert!(there[..20 * MIB + 5].iter().all(|byte| *byte == 7));
        assert_eq!(there[20 * MIB + 5], 0, "nothing beyond it");
        // The last pieces lie outside of the slab.
        let (_, _wanted, outcome) = scene.add(64 * MIB);
        assert!(outcome.recv().expect("it ended").is_err());
        let (_, _wanted, outcome) = scene.add(MIB);
        assert_eq!(outcome.recv().expect("it ended"), Ok(true), "others are not concerned");
        scene.turns.end();
        submitting.join().expect("it ends");
        awaiting.join().expect("it ends");
    }
}
