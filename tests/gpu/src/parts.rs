//! What the program does on a GPU besides the suite.

pub mod handoff;
pub mod probe;
pub mod rates;
pub mod served;
mod threads;

use serde_json::{Value, json};

use crate::log::Log;

/// The middle of some figures and how far they spread.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The lowest.
    pub low: f64,
    /// The median.
    pub median: f64,
    /// The highest.
    pub high: f64,
}

impl Spread {
    /// Of figures, of which there is at least one.
    #[must_use]
    pub fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let at = |n: usize| figures.get(n).copied().unwrap_or(f64::NAN);
        Self {
            low: at(0),
            median: at(figures.len() / 2),
            high: at(figures.len().saturating_sub(1)),
        }
    }

    /// For the log.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "low": self.low, "median": self.median, "high": self.high })
    }
}

/// Says whether a goal was met. Only of a GPU there are goals.
pub fn judge(log: &Log, gpu: bool, what: &str, met: bool) -> bool {
    let verdict = match (gpu, met) {
        (false, _) => "no goal: a stand-in is no GPU",
        (true, true) => "met",
        (true, false) => "MISSED",
    };
    log.say(
        &format!("  goal {what}: {verdict}"),
        "goal",
        &json!({ "goal": what, "verdict": verdict }),
    );
    met || !gpu
}
