//! What the edge counts.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Counters of the edge; clones share them.
#[derive(Clone, Debug)]
pub struct EdgeMetrics {
    /// Connections that are open now.
    pub connections: Family<ListenerLabel, Gauge>,
    /// Connections by what became of them.
    pub connection_outcomes: Family<ConnectionLabels, Counter>,
    /// Failed accepts: each one was followed by a pause.
    pub accept_errors: Counter,
    /// gRPC requests in progress.
    pub requests_in_flight: Gauge,
    /// Finished gRPC requests.
    pub requests: Family<RequestLabels, Counter>,
    /// How long they took, to the last byte taken by the client.
    pub request_seconds: Family<MethodLabel, Histogram>,
    /// Reply bytes taken by clients or dropped with their stream.
    pub sent_bytes: Counter,
    /// Bytes of requests and replies held for clients now.
    pub in_flight_bytes: Gauge,
    /// Streams that the edge cut.
    pub streams_cut: Family<CutLabel, Counter>,
}

/// Which listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListenerLabel {
    /// The listener.
    pub listener: ListenerKind,
}

/// A listener, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// gRPC over TCP.
    Tcp,
    /// gRPC over the Unix socket.
    Uds,
    /// The HTTP port.
    Http,
}

/// A connection and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    /// The listener.
    pub listener: ListenerKind,
    /// The outcome.
    pub outcome: ConnectionOutcome,
}

/// What became of a connection, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionOutcome {
    /// Ended by the peer, or by both after a drain.
    Closed,
    /// Over `limits.connections`.
    Refused,
    /// Silent, slow, or speaking something else at its start.
    NoPreface,
    /// A protocol error, or a peer that does not answer pings.
    Failed,
    /// The socket took nothing for `limits.progress_deadline`, or nothing of a reply whose
    /// stream was over.
    Stalled,
    /// Still busy at the end of a drain.
    Aborted,
}

/// A finished request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// `package.Service/Method`, or `unknown`.
    pub method: String,
    /// The gRPC code by its name in the specification.
    pub code: &'static str,
}

/// A method.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct MethodLabel {
    /// `package.Service/Method`, or `unknown`.
    pub method: String,
}

/// Why a stream was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CutLabel {
    /// The reason.
    pub reason: CutReason,
}

/// Why a stream was cut, as a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CutReason {
    /// The client took nothing for `limits.progress_deadline`.
    Stalled,
    /// Its deadline passed while the client was not taking the reply.
    Deadline,
}

/// From a cached block on loopback to a tier from a slow store.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0,
    600.0,
];

impl Default for EdgeMetrics {
    fn default() -> Self {
        Self {
            connections: Family::default(),
            connection_outcomes: Family::default(),
            accept_errors: Counter::default(),
            requests_in_flight: Gauge::default(),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            sent_bytes: Counter::default(),
            in_flight_bytes: Gauge::default(),
            streams_cut: Family::default(),
        }
    }
}

impl EdgeMetrics {
    /// Adds everything to `registry`; the text format appends `_total` to counters.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("tpad_connections", "Open connections", self.connections.clone());
        registry.register(
            "tpad_connection_outcomes",
            "Connections by what became of them",
            self.connection_outcomes.clone(),
        );
        registry.register(
            "tpad_accept_errors",
            "Accepts that failed, mostly for want of descriptors",
            self.accept_errors.clone(),
        );
        registry.register(
            "tpad_requests_in_flight",
            "gRPC requests in progress",
            self.requests_in_flight.clone(),
        );
        registry.register("tpad_requests", "Finished gRPC requests", self.requests.clone());
        registry.register(
            "tpad_request_seconds",
            "Time from a request to the last byte of its reply",
            self.request_seconds.clone(),
        );
        registry.register(
            "tpad_sent_bytes",
            "Reply bytes taken by clients or dropped with their stream",
            self.sent_bytes.clone(),
        );
        registry.register(
            "tpad_in_flight_bytes",
            "Bytes of requests and replies held for clients",
            self.in_flight_bytes.clone(),
        );
        registry.register(
            "tpad_streams_cut",
            "Streams cut because the client did not take its reply",
            self.streams_cut.clone(),
        );
    }

    pub(super) fn connection_ended(&self, listener: ListenerKind, outcome: ConnectionOutcome) {
        self.connection_outcomes.get_or_create(&ConnectionLabels { listener, outcome }).inc();
    }
}

impl ListenerKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Uds => "uds",
            Self::Http => "http",
        }
    }
}

impl ConnectionOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Refused => "refused",
            Self::NoPreface => "no_preface",
            Self::Failed => "failed",
            Self::Stalled => "stalled",
            Self::Aborted => "aborted",
        }
    }
}

impl CutReason {
    fn as_str(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Deadline => "deadline",
        }
    }
}

impl EncodeLabelValue for ListenerKind {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for ConnectionOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}

impl EncodeLabelValue for CutReason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.as_str().encode(encoder)
    }
}
