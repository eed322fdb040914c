//! Problems: what is wrong with a document or an index, and where.

use std::fmt;

/// Problems and warnings of one document that are told; what follows them is
/// more of the same.
pub(crate) const MAX_PROBLEMS: usize = 256;

/// One thing that is wrong, and its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// A JSON pointer into a manifest (`/tiers/0/id`), or the segment and block
    /// of an index (`layer 3, block 7`). Empty for the document as a whole.
    pub place: String,
    /// What is wrong and, where it is not plain, what to do.
    pub message: String,
}

impl Problem {
    /// A problem at `place`.
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: place.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.place.is_empty() { "document" } else { &self.place };
        write!(f, "{place}: {}", self.message)
    }
}

/// Notes one problem more, unless there are more than will be told.
pub(crate) fn note(problems: &mut Vec<Problem>, problem: impl FnOnce() -> Problem) {
    if problems.len() <= MAX_PROBLEMS {
        problems.push(problem());
    }
}

/// A document or index was refused; all its problems are listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", list(.0))]
pub struct Rejected(pub Vec<Problem>);

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("; ")
}
