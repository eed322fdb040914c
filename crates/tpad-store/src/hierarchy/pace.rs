//! How many ranges are asked of an origin at once: as many as it makes something of.
//!
//! Nobody knows beforehand what a store gives: one on the same rack is full with
//! four requests, one across an ocean needs sixty, one with a quota answers 503
//! to the ninth. So it is tried: more as long as more bytes come in the same time,
//! fewer where they do not, half when the store says that it is too much.

use std::time::Duration;

use tokio::time::Instant;

/// How long is looked at least before a number is judged: shorter than this, one
/// slow answer decides.
const LOOK: Duration = Duration::from_millis(100);

/// What the next number has to bring at least, for each place that it adds. Added
/// places of a store that is not full bring as much as those before; of one that is,
/// nothing. In between, a quarter of it is worth having and above the noise.
const WORTH: f64 = 0.25;

/// Looks between two trials of a number that did not pay; it doubles, since a store
/// rarely changes.
const FIRST_REST: u32 = 8;
/// Looks at most: at 100 ms, about a minute at full load.
const LONGEST_REST: u32 = 512;

/// How many ranges one origin is asked for at once.
#[derive(Debug)]
pub(super) struct Pace {
    least: u64,
    most: u64,
    places: u64,
    step: Step,
    /// `None` until the first range that was begun under this number has ended: before,
    /// less comes in than it brings.
    look: Option<Look>,
    /// Ranges begun before then ended under another number.
    since: Instant,
    rest: u32,
}

/// What is being tried.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Nothing is known: the next number is tried whatever this one brings.
    Begin,
    /// More than `from`, at which `rate` bytes came in a second. Doubling until
    /// that does not pay.
    Trial { from: u64, rate: f64, doubling: bool },
    /// So many looks more at what was found.
    Rest { looks: u32 },
}

/// What came in during a look.
#[derive(Clone, Copy, Debug)]
struct Look {
    since: Instant,
    bytes: u64,
    ranges: u64,
    /// Whether more was wanted all the time than there were places for.
    full: bool,
}

/// How a range ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// When it had its place.
    pub(super) began: Instant,
    /// What it brought.
    pub(super) bytes: u64,
    /// Whether the store failed, or asked for less, since it began: told or tried
    /// again, to this range or to another.
    pub(super) setback: bool,
    /// Whether others wait for places.
    pub(super) full: bool,
}

impl Pace {
    /// Between `least` and `most`; the least to begin with.
    pub(super) fn new(least: u64, most: u64) -> Self {
        let now = Instant::now();
        let (least, most) = (least.max(1), most.max(least).max(1));
        let (step, rest) = (Step::Begin, FIRST_REST);
        Self { least, most, places: least, step, look: None, since: now, rest }
    }

    /// How many at once.
    pub(super) fn places(&self) -> u64 {
        self.places
    }

    /// Takes note of a range that ended. Whether the number has changed.
    pub(super) fn note(&mut self, ended: Ended) -> bool {
        let before = self.places;
        if ended.began <= self.since {
            // It tells of a number that was given up.
            return false;
        }
        if ended.setback {
            self.change(self.places / 2);
            // A store that is back after an outage is tried again soon: only trials
            // that did not pay make the rests longer.
            self.step = Step::Rest { looks: FIRST_REST };
            return self.places != before;
        }
        let now = Instant::now();
        let Some(look) = &mut self.look else {
            self.look = Some(Look::at(now));
            return false;
        };
        look.bytes += ended.bytes;
        look.ranges += 1;
        look.full &= ended.full;
        let took = now.saturating_duration_since(look.since);
        if took < LOOK || look.ranges < self.places {
            return false;
        }
        let look = std::mem::replace(look, Look::at(now));
        // What was not wanted says nothing of what there is.
        if look.full {
            #[expect(clippy::cast_precision_loss, reason = "bytes of a second or so")]
            self.judge(look.bytes as f64 / took.as_secs_f64());
        }
        self.places != before
    }

    fn judge(&mut self, rate: f64) {
        match self.step {
            Step::Begin => self.attempt(rate, true),
            Step::Trial { from, rate: before, doubling } => {
                #[expect(clippy::cast_precision_loss, reason = "a few places")]
                let added = (self.places - from) as f64 / from as f64;
                if rate >= before * (1.0 + added * WORTH) {
                    self.rest = FIRST_REST;
                    self.attempt(rate, doubling);
                } else if doubling && self.places - from > 1 {
                    // Half of the way may have been worth it.
                    self.change(from);
                    self.step = Step::Rest { looks: 0 };
                } else {
                    self.settle(from);
                }
            }
            Step::Rest { looks: 0 } => self.attempt(rate, false),
            Step::Rest { looks } => self.step = Step::Rest { looks: looks - 1 },
        }
    }

    /// Tries more: twice as many, or an eighth.
    fn attempt(&mut self, rate: f64, doubling: bool) {
        let from = self.places;
        let more = if doubling { from * 2 } else { from + (from / 8).max(1) };
        if from == self.most {
            self.step = Step::Rest { looks: self.rest };
            return;
        }
        self.change(more);
        self.step = Step::Trial { from, rate, doubling };
    }

    /// Stays with a number for a while.
    fn settle(&mut self, places: u64) {
        self.change(places);
        self.step = Step::Rest { looks: self.rest };
        self.rest = (self.rest * 2).min(LONGEST_REST);
    }

    fn change(&mut self, places: u64) {
        self.places = places.clamp(self.least, self.most);
        self.since = Instant::now();
        self.look = None;
    }
}

impl Look {
    fn at(since: Instant) -> Self {
        Self { since, bytes: 0, ranges: 0, full: true }
    }
}

#[cfg(test)]
mod tests;
