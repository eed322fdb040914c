//! A request as it comes in: its deadline, its id, and a body that is bounded in size and time.

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};

use super::in_flight::InFlight;
use super::refusal;

/// When the request has to be over; in the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct RequestDeadline(pub Instant);

/// The request's name in logs and errors; in the request's extensions, and in the
/// reply's `x-request-id`.
#[derive(Clone, Debug)]
pub struct RequestId(Arc<str>);

/// Names requests that bring no name of their own.
#[derive(Debug)]
pub(super) struct RequestIds {
    /// Tells this process's requests from another's.
    process: u64,
    next: AtomicU64,
}

pub(super) const REQUEST_ID: &str = "x-request-id";

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RequestIds {
    pub(super) fn new() -> Self {
        Self { process: RandomState::new().hash_one(std::process::id()), next: AtomicU64::new(1) }
    }

    /// The caller's own id if it is short and plain, else a new one.
    pub(super) fn name(&self, headers: &HeaderMap) -> RequestId {
        let own = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(|id| {
            (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        });
        match own {
            Some(id) => RequestId(id.into()),
            None => {
                let number = self.next.fetch_add(1, Ordering::Relaxed);
                RequestId(format!("{:08x}-{number}", self.process >> 32).into())
            }
        }
    }
}

/// A `grpc-timeout` that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The time that `grpc-timeout` allows; `None` without the header.
pub(super) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Malformed> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let text = value.to_str().map_err(|_| Malformed)?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or(Malformed)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Malformed);
    }
    // Eight digits: no product below overflows.
    let number: u64 = digits.parse().map_err(|_| Malformed)?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return Err(Malformed),
    }))
}

/// What a request may bring whatever the others hold: a list of some hundred keys.
const SMALL_BYTES: u64 = 16 << 10;

/// A request's body, bounded in bytes and, for calls with one request message, in time.
pub(super) struct RequestBody {
    inner: hyper::body::Incoming,
    limit: u64,
    received: u64,
    in_flight: Arc<InFlight>,
    patience: Option<Pin<Box<Sleep>>>,
    id: RequestId,
}

impl RequestBody {
    pub(super) fn new(
        inner: hyper::body::Incoming,
        limit: usize,
        in_flight: Arc<InFlight>,
        patience: Option<Duration>,
        id: RequestId,
    ) -> Self {
        let patience = patience
            .filter(|_| !inner.is_end_stream())
            .map(|patience| Box::pin(tokio::time::sleep(patience)));
        Self { inner, limit: limit as u64, received: 0, in_flight, patience, id }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            // Only now: most requests are there at once, and set no timer.
            let Some(patience) = &mut this.patience else { return Poll::Pending };
            ready!(patience.as_mut().poll(cx));
            this.patience = None;
            return Poll::Ready(Some(Err(refusal::request_incomplete(&this.id).into())));
        };
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
            None => {
                this.patience = None;
                return Poll::Ready(None);
            }
        };
        if let Some(data) = frame.data_ref() {
            let length = data.len() as u64;
            this.received += length;
            let among_all = this.in_flight.add_request(length);
            if this.received > this.limit {
                let status = refusal::request_too_large(&this.id, this.limit);
                return Poll::Ready(Some(Err(status.into())));
            }
            let alone = among_all <= this.received;
            if this.received > SMALL_BYTES && !alone && among_all > this.in_flight.for_requests() {
                return Poll::Ready(Some(Err(refusal::requests_saturated(&this.id).into())));
            }
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.in_flight.remove_request(self.received);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("a header value"));
        headers
    }

    #[test]
    fn every_unit_of_grpc_timeout_is_read() {
        let read = |text: &str| timeout(&headers("grpc-timeout", text));
        assert_eq!(read("2H"), Ok(Some(Duration::from_secs(7200))));
        assert_eq!(read("3M"), Ok(Some(Duration::from_secs(180))));
        assert_eq!(read("4S"), Ok(Some(Duration::from_secs(4))));
        assert_eq!(read("100m"), Ok(Some(Duration::from_millis(100))));
        assert_eq!(read("5u"), Ok(Some(Duration::from_micros(5))));
        assert_eq!(read("6n"), Ok(Some(Duration::from_nanos(6))));
        assert_eq!(read("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn a_malformed_timeout_is_told_not_guessed() {
        for text in ["", "S", "1", "1s", "-1S", "1.5S", "123456789S", "1 S", "+1S"] {
            assert_eq!(timeout(&headers("grpc-timeout", text)), Err(Malformed), "{text}");
        }
    }

    #[test]
    fn a_request_keeps_a_plain_id_and_loses_any_other() {
        let ids = RequestIds::new();
        assert_eq!(ids.name(&headers(REQUEST_ID, "trace-7")).as_str(), "trace-7");
        let long = "x".repeat(129);
        for id in ["", "two words", long.as_str()] {
            assert_ne!(ids.name(&headers(REQUEST_ID, id)).as_str(), id);
        }
        let (first, second) = (ids.name(&HeaderMap::new()), ids.name(&HeaderMap::new()));
        assert_ne!(first.as_str(), second.as_str());
    }
}
