//! The edge's own errors: what the client sees when its request never reached, or outlived, the services.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::request::RequestId;
use crate::config::show_bytes;

/// `ErrorInfo.domain`, as in the services' errors.
const DOMAIN: &str = "tpad";

/// How long a refused caller is asked to wait: a request takes some milliseconds
/// from memory and some hundred from an origin.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// `limits.requests` requests are in progress.
pub(super) fn too_many_requests(id: &RequestId, limit: usize) -> Status {
    let message = format!(
        "{limit} requests are in progress, as many as limits.requests allows: try again later"
    );
    pushed_back(Code::ResourceExhausted, "TOO_MANY_REQUESTS", &message, id)
}

/// The peer has its share of `limits.requests`.
pub(super) fn too_many_of_one(id: &RequestId, limit: usize) -> Status {
    let message = format!(
        "of the {limit} requests that limits.requests allows this client has as many in progress as are left for others: try again later"
    );
    pushed_back(Code::ResourceExhausted, "TOO_MANY_REQUESTS", &message, id)
}

/// The connection has its share of `limits.in_flight_bytes` and nothing moves.
pub(super) fn saturated(id: &RequestId) -> Status {
    let message = "this connection's share of limits.in_flight_bytes is reached and its replies are not taken: read them, or try again later";
    pushed_back(Code::ResourceExhausted, "IN_FLIGHT_BYTES", message, id)
}

/// Requests hold their part of `limits.in_flight_bytes`.
pub(super) fn requests_saturated(id: &RequestId) -> Status {
    let message = "requests in progress hold half of limits.in_flight_bytes: try again later, or ask for less at a time";
    pushed_back(Code::ResourceExhausted, "IN_FLIGHT_BYTES", message, id)
}

/// The request message is larger than `limits.request_bytes`.
pub(super) fn request_too_large(id: &RequestId, limit: u64) -> Status {
    let message = format!(
        "the request is larger than the {} that are taken (limits.request_bytes): ask for less at a time",
        show_bytes(limit)
    );
    Status::with_error_details(Code::ResourceExhausted, message, details("REQUEST_TOO_LARGE", id))
}

/// The request message did not come.
pub(super) fn request_incomplete(id: &RequestId) -> Status {
    let message = "the request was not complete within limits.progress_deadline";
    Status::with_error_details(Code::DeadlineExceeded, message, details("REQUEST_INCOMPLETE", id))
}

/// The deadline passed; `when` says how far the reply had come.
pub(super) fn deadline(id: &RequestId, when: &str) -> Status {
    let message = format!("the deadline passed {when}");
    Status::with_error_details(Code::DeadlineExceeded, message, details("DEADLINE_EXCEEDED", id))
}

/// `grpc-timeout` cannot be read.
pub(super) fn malformed_timeout(id: &RequestId) -> Status {
    let message = "grpc-timeout is not up to eight digits and one of the units H, M, S, m, u, n";
    Status::with_error_details(Code::InvalidArgument, message, details("TIMEOUT_MALFORMED", id))
}

/// A reply without an end is ended by the drain.
pub(super) fn draining(id: &RequestId) -> Status {
    pushed_back(Code::Unavailable, "DRAINING", "the daemon is draining", id)
}

/// With the time to wait, in the details and as gRPC's own retry pushback.
fn pushed_back(code: Code, reason: &str, message: &str, id: &RequestId) -> Status {
    let mut details = details(reason, id);
    details.set_retry_info(Some(RETRY_AFTER));
    let mut status = Status::with_error_details(code, message, details);
    let pushback = u32::try_from(RETRY_AFTER.as_millis()).unwrap_or(u32::MAX);
    status.metadata_mut().insert("grpc-retry-pushback-ms", pushback.into());
    status
}

fn details(reason: &str, id: &RequestId) -> ErrorDetails {
    ErrorDetails::with_error_info(
        reason,
        DOMAIN,
        [("request_id".to_owned(), id.as_str().to_owned())],
    )
}
