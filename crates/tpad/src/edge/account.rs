//! The books of one request: counted when it begins, recorded once when it ends, however it ends.

use std::sync::{Arc, OnceLock};

use http::HeaderMap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::Span;

use super::held::Held;
use super::in_flight::Place;
use super::metrics::{EdgeMetrics, MethodLabel, RequestLabels};
use super::request::RequestId;

/// Where the requests of one method are counted.
#[derive(Debug)]
pub(super) struct Books {
    /// `package.Service/Method`, or `unknown`.
    method: String,
    metrics: EdgeMetrics,
    /// Looked up once: nearly all requests end here. Not before the first does, or metrics
    /// would tell of methods that nobody calls.
    seconds: OnceLock<Histogram>,
    succeeded: OnceLock<Counter>,
}

/// One request in progress. Dropped before it is finished it counts as cancelled.
pub(super) struct Account {
    books: Arc<Books>,
    id: RequestId,
    span: Span,
    began: Instant,
    finished: bool,
    _place: Option<Place>,
    held: Option<Held>,
}

impl Books {
    /// Those of `method` among all `metrics`.
    pub(super) fn of(method: &str, metrics: &EdgeMetrics) -> Arc<Self> {
        Arc::new(Self {
            method: method.to_owned(),
            metrics: metrics.clone(),
            seconds: OnceLock::new(),
            succeeded: OnceLock::new(),
        })
    }

    pub(super) fn method(&self) -> &str {
        &self.method
    }

    fn record(&self, code: Code, seconds: f64) {
        self.metrics.requests_in_flight.dec();
        let method = || self.method.clone();
        let label = || MethodLabel { method: method() };
        let histogram = || self.metrics.request_seconds.get_or_create_owned(&label());
        self.seconds.get_or_init(histogram).observe(seconds);
        let of = |code| {
            let labels = RequestLabels { method: method(), code: code_name(code) };
            self.metrics.requests.get_or_create_owned(&labels)
        };
        match code {
            Code::Ok => self.succeeded.get_or_init(|| of(code)).inc(),
            _ => of(code).inc(),
        };
    }
}

impl Account {
    pub(super) fn open(books: Arc<Books>, id: RequestId, span: Span, place: Option<Place>) -> Self {
        books.metrics.requests_in_flight.inc();
        Self { books, id, span, began: Instant::now(), finished: false, _place: place, held: None }
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
        let code = headers.and_then(|headers| headers.get(Status::GRPC_STATUS));
        self.record(code.map_or(Code::Internal, |code| Code::from_bytes(code.as_bytes())));
    }

    fn record(&mut self, code: Code) {
        if self.finished {
            return;
        }
        self.finished = true;
        let seconds = self.began.elapsed().as_secs_f64();
        tracing::debug!(parent: &self.span, code = code_name(code), seconds, "request ended");
        self.books.record(code, seconds);
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
