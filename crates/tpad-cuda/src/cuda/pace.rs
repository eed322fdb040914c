//! How fast a stream copies, so that who waits for a copy sleeps until it is nearly over.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What is shorter tells little of the pace, since its end is seen late, and is not worth a
/// sleep of its own.
const LEAST_BYTES: usize = 16 << 20;
/// A sleep ends this much before a copy is expected to: one of some ms lasts up to 0.15 ms
/// longer than it was to.
const AHEAD: Duration = Duration::from_micros(150);
/// Shorter sleeps are not worth it.
const LEAST_SLEEP: Duration = Duration::from_micros(50);
/// A copy that took longer than expected counts for so much of the next expectation, one that
/// took less for all of it: too late costs whoever waits, too early costs some looks.
const SLOWER: f64 = 1.0 / 16.0;

/// What is known of a stream's copies.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Once a copy was seen.
    seconds_per_byte: Option<f64>,
    last_end: Option<Instant>,
}

impl Pace {
    /// When the stream began with a copy that was submitted then, those before it being over.
    pub(super) fn begun(&self, submitted: Instant) -> Instant {
        self.state().last_end.map_or(submitted, |end| end.max(submitted))
    }

    /// How long a copy that has begun then is sure to take from now on.
    pub(super) fn left(&self, begun: Instant, bytes: usize) -> Duration {
        let known = self.state().seconds_per_byte.filter(|_| bytes >= LEAST_BYTES);
        let Some(seconds) = known else { return Duration::ZERO };
        let whole = Duration::from_secs_f64(seconds * length(bytes));
        let left = whole.saturating_sub(begun.elapsed() + AHEAD);
        if left < LEAST_SLEEP { Duration::ZERO } else { left }
    }

    /// A copy was seen to be over just now.
    pub(super) fn ended(&self, begun: Instant, bytes: usize) {
        let now = Instant::now();
        let mut state = self.state();
        state.last_end = Some(now);
        if bytes < LEAST_BYTES {
            return;
        }
        let took = now.saturating_duration_since(begun).as_secs_f64() / length(bytes);
        let known = state.seconds_per_byte.unwrap_or(took);
        let slower = (took - known).max(0.0) * SLOWER;
        state.seconds_per_byte = Some(known.min(took) + slower);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a length in memory")]
fn length(bytes: usize) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many milliseconds ago.
    fn ago(millis: u64) -> Instant {
        let then = Instant::now().checked_sub(Duration::from_millis(millis));
        then.expect("the machine runs for longer")
    }

    #[test]
    fn who_waits_sleeps_until_shortly_before_the_end_and_not_longer() {
        let pace = Pace::default();
        let bytes = 4 * LEAST_BYTES;
        assert_eq!(pace.left(Instant::now(), bytes), Duration::ZERO, "nothing is known yet");
        pace.ended(ago(40), bytes);
        let left = pace.left(ago(0), bytes);
        assert!(left > Duration::from_millis(39) && left < Duration::from_millis(41), "{left:?}");
        let left = pace.left(ago(30), bytes);
        assert!(left > Duration::from_millis(5) && left < Duration::from_millis(10), "{left:?}");
        assert_eq!(pace.left(ago(41), bytes), Duration::ZERO, "it is late");
        assert_eq!(pace.left(ago(0), LEAST_BYTES - 1), Duration::ZERO, "it is short");
    }

    #[test]
    fn a_faster_copy_counts_at_once_and_a_slower_one_little() {
        let pace = Pace::default();
        let bytes = 4 * LEAST_BYTES;
        pace.ended(ago(40), bytes);
        pace.ended(ago(72), bytes);
        let left = pace.left(ago(0), bytes);
        assert!(left > Duration::from_millis(41) && left < Duration::from_millis(44), "{left:?}");
        pace.ended(ago(20), bytes);
        let left = pace.left(ago(0), bytes);
        assert!(left > Duration::from_millis(19) && left < Duration::from_millis(21), "{left:?}");
        pace.ended(ago(1), LEAST_BYTES - 1);
        assert!(pace.left(ago(0), bytes) > Duration::from_millis(19), "a short one tells nothing");
    }

    #[test]
    fn a_copy_begins_when_the_one_before_it_is_over() {
        let pace = Pace::default();
        let submitted = ago(5);
        assert_eq!(pace.begun(submitted), submitted);
        pace.ended(ago(3), 1);
        assert!(pace.begun(submitted) > submitted);
        let later = Instant::now();
        assert_eq!(pace.begun(later), later);
    }
}
