//! An edge with a service whose replies are endless, hanging or exact.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::time::Instant;
use tpad::config::{Config, Deadlines, Limits, Listen, Origin, Surroundings, UnixSocket};
use tpad::edge::{
    Bound, ConnectionLabels, ConnectionOutcome, CutLabel, CutReason, DrainReport, Edge, EdgeConfig,
    EdgeMetrics, ListenerKind, ListenerLabel,
};
use tpad::memory::{LimitSource, MemoryLimit};

use crate::raw::PATIENCE;

/// 1 MiB pieces without end.
pub(crate) const ENDLESS: &str = "/tpad.test.Replies/Endless";
/// Headers, then nothing.
pub(crate) const SILENT: &str = "/tpad.test.Replies/Silent";
/// Headers, then nothing, of a package whose streams have no end by nature.
pub(crate) const WATCH: &str = "/other.test.Replies/Silent";
/// No headers either.
pub(crate) const HANG: &str = "/tpad.test.Replies/Hang";

/// A reply of so many bytes, then an OK.
pub(crate) fn exact(bytes: usize) -> String {
    format!("/tpad.test.Replies/Exact/{bytes}")
}

/// A running edge and what it knows.
pub(crate) struct Server {
    pub(crate) edge: Edge,
    pub(crate) metrics: EdgeMetrics,
    /// Replies whose bodies exist now.
    replies: Arc<AtomicUsize>,
    _directory: tempfile::TempDir,
}

/// The default limits, by way of the configuration, with time enough for any machine.
pub(crate) fn limits() -> Limits {
    let surroundings = Surroundings {
        memory: MemoryLimit { bytes: 8 << 30, source: LimitSource::Host },
        socket: "/run/tpad/tpad.sock".into(),
        origin: Origin::default(),
        disk_bytes: tpad::disk_bytes,
    };
    let defaults = Config::for_root("/m", None, &surroundings).expect("the defaults are valid");
    // A slow machine is no client that does not read: only tests that ask for it cut one.
    Limits { progress_deadline: Duration::from_secs(3600), ..defaults.limits }
}

/// The default limits with a short time for clients to take their replies.
pub(crate) fn impatient() -> Limits {
    Limits { progress_deadline: Duration::from_millis(300), ..limits() }
}

pub(crate) fn deadlines() -> Deadlines {
    Deadlines { default: Duration::from_secs(600), max: Duration::from_secs(3600) }
}

impl Server {
    pub(crate) async fn start(limits: Limits) -> Self {
        Self::start_with(limits, deadlines()).await
    }

    pub(crate) async fn start_with(limits: Limits, deadlines: Deadlines) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let any_port: Option<SocketAddr> = "127.0.0.1:0".parse().ok();
        let uds = UnixSocket { path: directory.path().join("tpad.sock"), mode: 0o600 };
        let listen = Listen { grpc: any_port, uds: Some(uds), http: any_port };
        let metrics = EdgeMetrics::default();
        let replies = Arc::new(AtomicUsize::new(0));
        let bound = Bound::bind(&listen).await.expect("bound");
        let (_, health) = tonic_health::server::health_reporter();
        let edge = bound.serve(EdgeConfig {
            routes: tonic::service::Routes::from(routes(&replies))
                .add_service(health.max_decoding_message_size(limits.request_bytes)),
            direct: None,
            methods: HashSet::from(["tpad.test.Replies/Endless".to_owned()]),
            pages: axum::Router::new().route("/page", get(|| async { "a page" })),
            limits,
            deadlines,
            metrics: metrics.clone(),
        });
        Self { edge, metrics, replies, _directory: directory }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.edge.grpc_addr().expect("listens")
    }

    pub(crate) fn http_address(&self) -> SocketAddr {
        self.edge.http_addr().expect("listens")
    }

    pub(crate) fn uds(&self) -> PathBuf {
        self.edge.uds_path().expect("listens").to_owned()
    }

    /// Replies whose bodies exist now.
    pub(crate) fn replies(&self) -> usize {
        self.replies.load(Ordering::SeqCst)
    }

    pub(crate) fn in_flight_bytes(&self) -> i64 {
        self.metrics.in_flight_bytes.get()
    }

    pub(crate) fn connections(&self, listener: ListenerKind) -> i64 {
        self.metrics.connections.get_or_create(&ListenerLabel { listener }).get()
    }

    pub(crate) fn ended(&self, listener: ListenerKind, outcome: ConnectionOutcome) -> u64 {
        self.metrics
            .connection_outcomes
            .get_or_create(&ConnectionLabels { listener, outcome })
            .get()
    }

    pub(crate) fn cut(&self, reason: CutReason) -> u64 {
        self.metrics.streams_cut.get_or_create(&CutLabel { reason }).get()
    }

    pub(crate) async fn drain(self, within: Duration) -> DrainReport {
        self.edge.drain(Instant::now() + within).await
    }
}

/// Polls until `condition` holds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Counts a reply's body while it exists.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(replies: &Arc<AtomicUsize>) -> Self {
        replies.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(replies))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn routes(replies: &Arc<AtomicUsize>) -> axum::Router {
    let silent = |replies: &Arc<AtomicUsize>| {
        let replies = Arc::clone(replies);
        post(move || {
            let counted = Counted::new(&replies);
            async move { reply(stream::pending().map(move |frame| (&counted, frame).1)) }
        })
    };
    let (endless, exact) = (Arc::clone(replies), Arc::clone(replies));
    axum::Router::new()
        .route(
            ENDLESS,
            post(move || {
                let counted = Counted::new(&endless);
                async move {
                    let piece = Bytes::from(vec![7; 1 << 20]);
                    reply(stream::repeat_with(move || (&counted, data(piece.clone())).1))
                }
            }),
        )
        .route(SILENT, silent(replies))
        .route(WATCH, silent(replies))
        .route(HANG, post(std::future::pending::<Response>))
        .route("/tpad.test.Replies/Echo", post(echo))
        .route(
            "/tpad.test.Replies/Exact/{bytes}",
            post(move |Path(bytes): Path<usize>| {
                let counted = Counted::new(&exact);
                async move {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().expect("a value"));
                    let frames = [data(Bytes::from(vec![7; bytes])), Ok(Frame::trailers(trailers))];
                    reply(stream::iter(frames).map(move |frame| (&counted, frame).1))
                }
            }),
        )
}

/// Reads its request to the end and answers with its length, or with the error that reading gave.
async fn echo(body: Body) -> Response {
    match body.collect().await {
        Ok(body) => reply(stream::iter([data(body.to_bytes())])),
        Err(error) => {
            let status = std::error::Error::source(&error)
                .and_then(|source| source.downcast_ref::<tonic::Status>())
                .cloned()
                .unwrap_or_else(|| tonic::Status::unknown(error.to_string()));
            status.into_http::<Body>()
        }
    }
}

fn data(bytes: Bytes) -> Result<Frame<Bytes>, Infallible> {
    Ok(Frame::data(bytes))
}

fn reply(
    frames: impl stream::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + 'static,
) -> Response {
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
    response
}
