//! The line in which the connections of a thread stand for long writes.
//!
//! Only the first of them is woken: what else the thread has to do, reading requests and
//! answering small ones, then waits for the turn at writing in which it comes and for the
//! next one, and not for one of each.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// The line of one thread.
#[derive(Debug, Default)]
pub(super) struct Line(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    places: u64,
    /// Whose turn it is.
    turn: Option<u64>,
    waiting: VecDeque<(u64, Waker)>,
}

/// A connection's place. Dropped, it lets the next one pass.
#[derive(Debug)]
pub(super) struct Place {
    line: Arc<Line>,
    number: u64,
    /// It stands in line, or its turn has come and it was not polled since.
    waits: AtomicBool,
}

impl Line {
    pub(super) fn place(self: &Arc<Self>) -> Place {
        let mut state = self.state();
        state.places += 1;
        let number = state.places;
        Place { line: Arc::clone(self), number, waits: AtomicBool::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half done under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The connection is polled: whoever woke it, its turn may have come.
    pub(super) fn arrive(&self) {
        if self.waits() && self.line.state().turn == Some(self.number) {
            self.waits.store(false, Ordering::Relaxed);
        }
    }

    /// Whether it may write, or else stands in line: `waker` is woken when it may. Its turn ends
    /// when it [passes](Self::pass).
    pub(super) fn has_turn(&self, waker: &Waker) -> bool {
        let mut state = self.line.state();
        if state.turn.is_none() && state.waiting.is_empty() {
            state.turn = Some(self.number);
        }
        let has = state.turn == Some(self.number);
        if !has {
            self.stand(&mut state, waker);
        }
        has
    }

    /// Goes to the end of the line, whether it has its turn or not.
    pub(super) fn line_up(&self, waker: &Waker) {
        self.stand(&mut self.line.state(), waker);
    }

    /// Whether it stands in line.
    pub(super) fn waits(&self) -> bool {
        self.waits.load(Ordering::Relaxed)
    }

    /// Ends its turn, if it has it, and wakes the next; the first, if nobody has it.
    pub(super) fn pass(&self) {
        let mut state = self.line.state();
        if state.turn.is_some_and(|number| number != self.number) {
            return;
        }
        let next = state.waiting.pop_front();
        state.turn = next.as_ref().map(|(number, _)| *number);
        drop(state);
        if let Some((_, waker)) = next {
            waker.wake();
        }
    }

    fn stand(&self, state: &mut State, waker: &Waker) {
        if !self.waits.swap(true, Ordering::Relaxed) {
            state.waiting.push_back((self.number, waker.clone()));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.line.state().waiting.retain(|(number, _)| *number != self.number);
        self.pass();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    /// A connection that counts how often it is woken.
    struct Writer {
        place: Place,
        woken: Arc<Count>,
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Writer {
        fn of(line: &Arc<Line>) -> Self {
            Self { place: line.place(), woken: Arc::default() }
        }

        fn waker(&self) -> Waker {
            Waker::from(Arc::clone(&self.woken))
        }

        fn woken(&self) -> usize {
            self.woken.0.load(Ordering::Relaxed)
        }

        /// A poll in which it tries to write, and wants more if it could; whether it could.
        fn polled(&self) -> bool {
            self.place.arrive();
            let wrote = self.place.has_turn(&self.waker());
            if wrote {
                self.place.line_up(&self.waker());
            }
            self.place.pass();
            wrote
        }
    }

    #[test]
    fn all_write_in_turn_and_only_the_next_is_woken() {
        let line = Arc::default();
        let writers: Vec<Writer> = (0..3).map(|_| Writer::of(&line)).collect();
        assert!(writers[0].polled(), "nobody is there");
        assert!(!writers[1].polled() && !writers[2].polled(), "it is the first one's again");
        for round in 0..3 {
            for (n, writer) in writers.iter().enumerate() {
                let woken: Vec<usize> = writers.iter().map(Writer::woken).collect();
                let expected = |m| round + usize::from(m <= n);
                assert_eq!(woken, (0..3).map(expected).collect::<Vec<_>>(), "{n}");
                assert!(writer.polled());
            }
        }
    }

    #[test]
    fn whose_turn_it_is_and_who_has_nothing_to_write_lets_the_next_pass() {
        let line = Arc::default();
        let [one, other] = [Writer::of(&line), Writer::of(&line)];
        assert!(one.polled());
        assert!(!other.polled() && !other.polled(), "woken by something else");
        one.place.arrive();
        one.place.pass();
        assert_eq!(other.woken(), 1);
        assert!(!one.place.waits() && other.polled());
        assert!(one.polled() || one.place.waits(), "it may come back");
    }

    #[test]
    fn who_goes_away_leaves_the_line() {
        let line = Arc::default();
        let [one, other, third] = [(); 3].map(|()| Writer::of(&line));
        assert!(one.polled() && !other.polled() && !third.polled());
        drop(other);
        drop(one);
        assert_eq!(third.woken(), 1);
        assert!(third.polled());
    }

    #[test]
    fn who_lines_up_alone_is_woken_at_once() {
        let line = Arc::default();
        let alone = Writer::of(&line);
        alone.place.line_up(&alone.waker());
        alone.place.pass();
        assert_eq!(alone.woken(), 1);
        assert!(alone.polled());
    }
}
