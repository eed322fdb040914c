//! One call: its deadline, and whether it is made again.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};

use crate::options::RetryPolicy;
use crate::receive::ReadError;
use crate::{Error, Kind};

/// When a call must be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    after: Duration,
}

/// What all steps of one call share.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    address: std::sync::Arc<str>,
    deadline: Option<Deadline>,
    retry: RetryPolicy,
}

impl Call {
    /// A call that starts now. `after` is its time; one too long to count is
    /// none.
    pub(crate) fn starting_now(
        address: std::sync::Arc<str>,
        after: Option<Duration>,
        retry: RetryPolicy,
    ) -> Self {
        let deadline = after
            .and_then(|after| Instant::now().checked_add(after).map(|at| Deadline { at, after }));
        Self { address, deadline, retry }
    }

    /// `message` as a request that tells the daemon how much time is left.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(left) = self.time_left() {
            request.set_timeout(left);
        }
        request
    }

    /// Waits for `step`, at most until the deadline.
    pub(crate) async fn wait<T>(&self, step: impl Future<Output = T>) -> Result<T, Error> {
        match self.deadline {
            None => Ok(step.await),
            Some(Deadline { at, after }) => {
                tokio::time::timeout_at(at, step).await.map_err(|_| Error::Deadline { after })
            }
        }
    }

    /// Waits for a step of reading a reply.
    pub(crate) async fn read<T>(
        &self,
        step: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, Error> {
        self.wait(step).await?.map_err(|error| match error {
            ReadError::Status(status) => self.error(&status),
            ReadError::Protocol(what) => Error::protocol("fetch", what),
            ReadError::Refused(error) => error,
        })
    }

    /// What is left of the deadline, for the daemon to know.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.at.saturating_duration_since(Instant::now()))
    }

    /// The error that `status` stands for in this call.
    pub(crate) fn error(&self, status: &Status) -> Error {
        match self.deadline {
            Some(Deadline { at, after }) if ended_by_deadline(status, at) => {
                Error::Deadline { after }
            }
            _ => Error::of(status, &self.address),
        }
    }

    /// Makes the call until it succeeds, fails for good or the policy ends it.
    /// An attempt must not have passed anything on when it fails.
    pub(crate) async fn attempt<T, F>(&self, make: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut retries = self.retry.retries;
        loop {
            let error = match make().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = self.pause_before_retry(&error).filter(|_| retries > 0) else {
                return Err(error);
            };
            retries -= 1;
            tokio::time::sleep(pause).await;
        }
    }

    fn pause_before_retry(&self, error: &Error) -> Option<Duration> {
        let refusal = error.refusal()?;
        if !matches!(refusal.kind, Kind::Unavailable | Kind::ResourceExhausted) {
            return None;
        }
        let pause = refusal.retry_after.filter(|pause| *pause <= self.retry.max_wait)?;
        let again = Instant::now().checked_add(pause)?;
        self.deadline.is_none_or(|deadline| again < deadline.at).then_some(pause)
    }
}

/// Whether the transport, which keeps the same deadline, noticed it first: even
/// a moment before it, since `grpc-timeout` is rounded down.
fn ended_by_deadline(status: &Status, at: Instant) -> bool {
    let broken = std::error::Error::source(status).is_some();
    let expired = status.code() == Code::Cancelled
        && status.message() == tonic::TimeoutExpired(()).to_string();
    expired || (broken && at <= Instant::now())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::error::Refusal;

    fn refusal(kind: Kind, retry_after: Option<Duration>) -> Error {
        Error::Refused(Box::new(Refusal {
            kind,
            code: 8,
            message: "busy".to_owned(),
            reason: String::new(),
            metadata: BTreeMap::new(),
            retry_after,
        }))
    }

    #[tokio::test]
    async fn the_transports_own_timer_is_the_calls_deadline() {
        let expired = Status::cancelled(tonic::TimeoutExpired(()).to_string());
        let after = Duration::from_secs(3600);
        let address: Arc<str> = "http://x".into();
        let bounded = Call::starting_now(Arc::clone(&address), Some(after), RetryPolicy::off());
        assert_eq!(bounded.error(&expired).kind(), Kind::DeadlineExceeded);
        assert_eq!(bounded.error(&Status::cancelled("left")).kind(), Kind::Cancelled);
        let unbounded = Call::starting_now(address, None, RetryPolicy::off());
        assert_eq!(unbounded.error(&expired).kind(), Kind::Cancelled);
    }

    async fn calls_made(kind: Kind, after: Option<Duration>, deadline: Option<Duration>) -> u32 {
        let policy = RetryPolicy::up_to(2, Duration::from_secs(1));
        let call = Call::starting_now("http://x".into(), deadline, policy);
        let calls = Cell::new(0);
        let result: Result<(), Error> = call
            .attempt(|| async {
                calls.set(calls.get() + 1);
                Err(refusal(kind, after))
            })
            .await;
        assert_eq!(result.expect_err("every attempt fails").kind(), kind);
        calls.get()
    }

    #[tokio::test(start_paused = true)]
    async fn only_pushback_inside_the_limits_is_followed() {
        let soon = Some(Duration::from_millis(100));
        assert_eq!(calls_made(Kind::Unavailable, soon, None).await, 3);
        assert_eq!(calls_made(Kind::ResourceExhausted, soon, None).await, 3);
        assert_eq!(calls_made(Kind::ResourceExhausted, None, None).await, 1);
        assert_eq!(calls_made(Kind::DataLoss, soon, None).await, 1);
        assert_eq!(calls_made(Kind::Unavailable, Some(Duration::from_secs(2)), None).await, 1);
        assert_eq!(calls_made(Kind::Unavailable, soon, Some(Duration::from_millis(150))).await, 2);
    }
}
