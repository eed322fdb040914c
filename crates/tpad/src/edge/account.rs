//! The books of one request: counted when it begins, recorded once when it ends, however it ends.

use http::HeaderMap;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::Span;

use super::held::Held;
use super::in_flight::Place;
use super::metrics::{EdgeMetrics, MethodLabel, RequestLabels};
use super::request::RequestId;

/// One request in progress. Dropped before it is finished it counts as cancelled.
pub(super) struct Account {
    metrics: EdgeMetrics,
    method: String,
    id: RequestId,
    span: Span,
    began: Instant,
    finished: bool,
    _place: Option<Place>,
    held: Option<Held>,
}

impl Account {
    pub(super) fn open(
        metrics: EdgeMetrics,
        method: String,
        id: RequestId,
        span: Span,
        place: Option<Place>,
    ) -> Self {
        metrics.requests_in_flight.inc();
        Self {
            metrics,
            method,
            id,
            span,
            began: Instant::now(),
            finished: false,
            _place: place,
            held: None,
        }
    }

    /// Keeps what the reply holds until the request is over.
    pub(super) fn keep(&mut self, held: Option<Held>) {
        self.held = held;
    }

    pub(super) fn keeps(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn id(&self) -> &RequestId {
        &self.id
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Records the end that `headers` tell; without a status there it is an internal error.
    pub(super) fn finish(&mut self, headers: Option<&HeaderMap>) {
        let code = headers
            .and_then(Status::from_header_map)
            .map_or(Code::Internal, |status| status.code());
        self.record(code);
    }

    fn record(&mut self, code: Code) {
        if self.finished {
            return;
        }
        self.finished = true;
        let seconds = self.began.elapsed().as_secs_f64();
        let method = std::mem::take(&mut self.method);
        tracing::debug!(parent: &self.span, code = code_name(code), seconds, "request ended");
        self.metrics.requests_in_flight.dec();
        self.metrics
            .request_seconds
            .get_or_create(&MethodLabel { method: method.clone() })
            .observe(seconds);
        self.metrics.requests.get_or_create(&RequestLabels { method, code: code_name(code) }).inc();
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.record(Code::Cancelled);
    }
}

/// The name that gRPC's specification gives to a code.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
