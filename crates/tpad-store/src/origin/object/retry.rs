//! The one place where a failed request is tried again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::Rng as _;
use tokio::time::{Instant, sleep, timeout_at};

use super::ObjectOrigin;
use crate::OriginError;

/// The longest pause before the second attempt; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The attempts at one request.
pub(super) struct Attempts<'a> {
    origin: &'a ObjectOrigin,
    object: &'a str,
    deadline: Option<Instant>,
    made: u32,
    retries: u32,
    last: Option<OriginError>,
}

impl<'a> Attempts<'a> {
    /// None made yet. Without a deadline only their number bounds them. A store
    /// that is known to be silent is tried once.
    pub(super) fn at(origin: &'a ObjectOrigin, object: &'a str, deadline: Option<Instant>) -> Self {
        let retries = if origin.pulse.is_silent() { 0 } else { origin.options.retries };
        Self { origin, object, deadline, made: 0, retries, last: None }
    }

    /// Makes an attempt: `Some` is how the request ends. `None` asks for another
    /// attempt, after a pause drawn from a growing span, so that readers which
    /// failed together do not return together.
    pub(super) async fn make<T>(
        &mut self,
        attempt: impl Future<Output = Result<T, OriginError>>,
    ) -> Option<Result<T, OriginError>> {
        self.made += 1;
        let attempt = self.watched(attempt);
        let result = match self.deadline {
            None => attempt.await,
            Some(deadline) => match timeout_at(deadline, attempt).await {
                Ok(result) => result,
                Err(_elapsed) => return Some(Err(self.late())),
            },
        };
        let error = match result {
            Err(OriginError::Failed { object, source, .. }) => {
                OriginError::Failed { object, attempts: self.made, source }
            }
            Err(error) => error,
            Ok(value) => return Some(Ok(value)),
        };
        if error.is_transient() {
            self.origin.setbacks.fetch_add(1, Ordering::Relaxed);
        }
        if !error.is_transient() || self.made > self.retries {
            return Some(Err(error));
        }
        let span = FIRST_PAUSE.saturating_mul(1 << (self.made - 1).min(10)).min(LONGEST_PAUSE);
        let pause = rand::rng().random_range(span / 2..=span);
        self.last = Some(error);
        if self.deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
            return Some(Err(self.late()));
        }
        if let Some(metrics) = &self.origin.metrics {
            metrics.origin_retried();
        }
        sleep(pause).await;
        None
    }

    /// An attempt at a store that answers, or that is not known not to.
    async fn watched<T>(
        &self,
        attempt: impl Future<Output = Result<T, OriginError>>,
    ) -> Result<T, OriginError> {
        let ObjectOrigin { pulse, store, prefix, local, .. } = self.origin;
        if *local {
            return attempt.await;
        }
        pulse.awaited(store, prefix, self.object).await?;
        let result = attempt.await;
        pulse.note(&result);
        result
    }

    fn late(&mut self) -> OriginError {
        OriginError::Deadline {
            object: self.object.to_owned(),
            last: self.last.take().map(Box::new),
        }
    }
}
