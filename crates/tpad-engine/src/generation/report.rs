//! Telling the operator that a checkpoint is damaged.
//!
//! Callers get the error; but whoever owns the checkpoint is someone else, and
//! must hear of it once, not at every read.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tpad_store::ErrorKind;

use crate::EngineError;

/// Places remembered. What goes wrong beyond them shows in counters.
const PLACES: usize = 64;

/// What was told already.
#[derive(Debug, Default)]
pub(super) struct Report {
    told: Mutex<HashSet<String>>,
}

impl Report {
    /// Logs an error that someone has to repair, the first time that `place` has
    /// one.
    pub(super) fn note(&self, model: &str, place: &str, error: &EngineError) {
        let kind = error.kind();
        if !matches!(kind, ErrorKind::DataLoss | ErrorKind::Denied | ErrorKind::Internal) {
            return;
        }
        if self.is_news(place) {
            tracing::error!(model, kind = kind.as_str(), %error, "checkpoint cannot be read");
        }
    }

    fn is_news(&self, place: &str) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < PLACES && told.insert(place.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_is_news_once_and_only_so_many_are() {
        let report = Report::default();
        assert!(report.is_news("a"));
        assert!(!report.is_news("a"));
        let news = (0..1000).filter(|n| report.is_news(&n.to_string())).count();
        assert_eq!(news, PLACES - 1);
    }
}
