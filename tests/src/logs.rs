//! Warnings and errors that a test's daemon logs.
//!
//! ERROR means that a person must look, so a test in which nothing is wrong
//! logs none, and a test that breaks something says which lines it expects.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// What was logged at WARN and above, and what may be.
#[derive(Clone, Debug, Default)]
pub struct Logs {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    listed: Vec<Listed>,
}

#[derive(Debug)]
struct Listed {
    text: String,
    required: bool,
}

impl Logs {
    /// Lines that hold `text` must come; the test fails when none does.
    pub fn expect(&self, text: &str) {
        self.list(text, true);
    }

    /// Lines that hold `text` may come.
    pub fn allow(&self, text: &str) {
        self.list(text, false);
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lines.clone()
    }

    /// Holds what was logged against what was listed.
    ///
    /// # Panics
    /// When a line was not listed, or a required one did not come.
    pub fn check(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let unlisted: Vec<&String> = state
            .lines
            .iter()
            .filter(|line| !state.listed.iter().any(|listed| line.contains(&listed.text)))
            .collect();
        assert!(unlisted.is_empty(), "unlisted warnings or errors: {unlisted:#?}");
        for listed in state.listed.iter().filter(|listed| listed.required) {
            let came = state.lines.iter().any(|line| line.contains(&listed.text));
            assert!(came, "no line holds {:?}: {:#?}", listed.text, state.lines);
        }
    }

    fn list(&self, text: &str, required: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.listed.push(Listed { text: text.to_owned(), required });
    }
}

impl<S: Subscriber> Layer<S> for Logs {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > Level::WARN {
            return;
        }
        let mut line = Line(format!("{} {}", event.metadata().level(), event.metadata().target()));
        event.record(&mut line);
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lines.push(line.0);
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
