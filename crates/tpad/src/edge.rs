//! The edge: listeners, connections and streams, each with its bounds and its end.
//!
//! tonic's own server leaves open how long a silent socket lives, how many
//! streams a connection opens, how long a reply may wait for its client and how
//! long a drain takes. So the edge accepts connections itself and serves tonic's
//! routes with hyper's HTTP/2, every bound explicit.
//!
//! **Invariant:** every connection is a task of the edge and every stream a part of
//! its connection's; after [`Edge::drain`] none is left.

mod accept;
mod account;
mod connection;
mod direct;
mod gateway;
mod held;
mod in_flight;
mod io;
mod line;
mod metrics;
mod peer;
mod refusal;
mod reply;
mod request;
mod stall;
mod stream;
mod streams;
mod tails;
mod threads;
mod turn;
mod unix;
mod unpaced;
mod window;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use self::accept::{Acceptor, Listener};
use self::connection::Closing;
use self::gateway::{Gateway, Services};
use self::threads::Threads;
use self::unpaced::Unpaced;
use crate::config::{Deadlines, Limits, Listen};

pub use self::direct::Direct;
pub(crate) use self::held::Held;
pub use self::metrics::{
    ConnectionLabels, ConnectionOutcome, CutLabel, CutReason, EdgeMetrics, ListenerKind,
    ListenerLabel, MethodLabel, RequestLabels,
};
pub use self::peer::Peer;
pub use self::request::{RequestDeadline, RequestId};
pub(crate) use self::unix::{SocketFile, bind as bind_unix};

/// SETTINGS, then GOAWAY with ENHANCE_YOUR_CALM: to a connection beyond the bound.
const GRPC_FAREWELL: &[u8] = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00\
    \x00\x00\x1a\x07\x00\x00\x00\x00\x00\
    \x00\x00\x00\x00\x00\x00\x00\x0b\
    limits.connections";

/// To an HTTP connection beyond the bound.
const HTTP_FAREWELL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Connections that wait to be accepted over TCP: as many as may be served by default.
/// With the usual 128 some of 450 clients that came at once were reset.
const BACKLOG: u32 = 1024;

/// What tasks need to notice that they are to end, after the drain's deadline.
const ABORT_GRACE: Duration = Duration::from_millis(100);

/// Listeners that are bound and not served yet.
#[derive(Debug)]
pub struct Bound {
    grpc: Option<(Unpaced, SocketAddr)>,
    uds: Option<(tokio::net::UnixListener, SocketFile)>,
    uds_path: Option<PathBuf>,
    http: Option<(Unpaced, SocketAddr)>,
}

/// The running edge.
#[derive(Debug)]
pub struct Edge {
    grpc_addr: Option<SocketAddr>,
    uds_path: Option<PathBuf>,
    http_addr: Option<SocketAddr>,
    grpc: Half,
    http: Half,
    socket_file: Option<SocketFile>,
    /// Until everything that they serve is over.
    _threads: Arc<Threads>,
}

/// One protocol's tasks and how they are ended.
#[derive(Debug)]
struct Half {
    accept: CancellationToken,
    closing: Closing,
    tasks: TaskTracker,
}

/// What the edge serves, within which bounds.
#[derive(Debug)]
pub struct EdgeConfig {
    /// The gRPC services.
    pub routes: Routes,
    /// The one of them that is asked most.
    pub direct: Option<Direct>,
    /// `package.Service/Method` of everything in `routes`: what metrics may be labelled with.
    pub methods: HashSet<String>,
    /// The read-only HTTP port's pages.
    pub pages: axum::Router,
    /// Bounds.
    pub limits: Limits,
    /// Deadlines of requests.
    pub deadlines: Deadlines,
    /// Where the edge counts.
    pub metrics: EdgeMetrics,
}

/// How a drain went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections that were still busy at the deadline and were cut.
    pub aborted_connections: usize,
    /// How long it took.
    pub took: Duration,
}

/// Why the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, or not this machine's.
    #[error(
        "{key} = {address}: cannot listen: {error}; choose another address, or stop what listens there"
    )]
    Address {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        error: std::io::Error,
    },
    /// The socket's directory cannot be made.
    #[error("{key} = {}: cannot make its directory: {error}", path.display())]
    SocketDirectory {
        /// The configuration's key.
        key: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The system's answer.
        error: std::io::Error,
    },
    /// The socket cannot be made.
    #[error("{key} = {}: cannot make the socket: {error}", path.display())]
    Socket {
        /// The configuration's key.
        key: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The system's answer.
        error: std::io::Error,
    },
    /// A live daemon has it.
    #[error("{key} = {}: a running daemon listens there; stop it, or choose another path (\"off\" for none)", path.display())]
    SocketInUse {
        /// The configuration's key.
        key: &'static str,
        /// The socket's path.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("{key} = {}: there is a file of that name that is no socket; move it, or choose another path", path.display())]
    NotASocket {
        /// The configuration's key.
        key: &'static str,
        /// The socket's path.
        path: PathBuf,
    },
}

impl Bound {
    /// Binds every listener that is on. Connections queue in the kernel until [`Bound::serve`].
    pub async fn bind(listen: &Listen) -> Result<Self, BindError> {
        let grpc = bind_tcp("listen.grpc", listen.grpc)?;
        let http = bind_tcp("listen.http", listen.http)?;
        let uds = listen.uds.as_ref().map(|uds| unix::bind("listen.uds", uds)).transpose()?;
        let uds_path = listen.uds.as_ref().map(|socket| socket.path.clone());
        Ok(Self { grpc, uds, uds_path, http })
    }

    /// Begins to serve.
    pub fn serve(self, config: EdgeConfig) -> Edge {
        let EdgeConfig { routes, direct, methods, pages, limits, deadlines, metrics } = config;
        let (grpc, http) = (Half::new(), Half::new());
        let drain = grpc.closing.drain.clone();
        let threads = Arc::new(Threads::of_runtime());
        let gateway = Gateway::new(
            Services { routes, direct, methods },
            limits,
            deadlines,
            metrics.clone(),
            drain,
            threads.most(),
        );
        let gateway = Arc::new(gateway);
        let slots = Arc::new(Semaphore::new(limits.connections));

        let grpc_addr = self.grpc.as_ref().map(|(_, address)| *address);
        let (uds, socket_file) = self.uds.unzip();
        let listeners = [
            self.grpc.map(|(listener, _)| (Listener::Tcp(listener), ListenerKind::Tcp)),
            uds.map(|listener| (Listener::Unix(listener), ListenerKind::Uds)),
        ];
        for (listener, kind) in listeners.into_iter().flatten() {
            let acceptor = Acceptor {
                listener,
                kind,
                slots: Arc::clone(&slots),
                threads: Arc::clone(&threads),
                farewell: GRPC_FAREWELL,
                metrics: metrics.clone(),
            };
            let (gateway, closing) = (Arc::clone(&gateway), grpc.closing.clone());
            grpc.tasks.spawn(acceptor.run(
                grpc.accept.clone(),
                grpc.tasks.clone(),
                move |socket, peer, place| {
                    let (gateway, closing) = (Arc::clone(&gateway), closing.clone());
                    connection::serve_grpc(socket, peer, gateway, closing, place)
                },
            ));
        }
        let http_addr = self.http.as_ref().map(|(_, address)| *address);
        if let Some((listener, _)) = self.http {
            let acceptor = Acceptor {
                listener: Listener::Tcp(listener),
                kind: ListenerKind::Http,
                slots: Arc::new(Semaphore::new(limits.http_connections)),
                threads: Arc::new(Threads::none()),
                farewell: HTTP_FAREWELL,
                metrics,
            };
            let (pages, closing) = (TowerToHyperService::new(pages), http.closing.clone());
            http.tasks.spawn(acceptor.run(
                http.accept.clone(),
                http.tasks.clone(),
                move |socket, _, _| {
                    connection::serve_http(socket, pages.clone(), limits, closing.clone())
                },
            ));
        }
        grpc.tasks.close();
        http.tasks.close();
        Edge {
            grpc_addr,
            uds_path: self.uds_path,
            http_addr,
            grpc,
            http,
            socket_file,
            _threads: threads,
        }
    }
}

fn bind_tcp(
    key: &'static str,
    address: Option<SocketAddr>,
) -> Result<Option<(Unpaced, SocketAddr)>, BindError> {
    let Some(address) = address else { return Ok(None) };
    let failed = |error| BindError::Address { key, address, error };
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // As `TcpListener::bind` does: a restart finds its port although old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Unpaced::listen(socket, BACKLOG)
    };
    let listener = listen().map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok(Some((listener, bound)))
}

impl Edge {
    /// The address of gRPC over TCP, its port as bound.
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc_addr
    }

    /// The path of the Unix socket.
    pub fn uds_path(&self) -> Option<&Path> {
        self.uds_path.as_deref()
    }

    /// The address of the HTTP port, as bound.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http_addr
    }

    /// Stops accepting gRPC, lets requests in progress finish until `deadline`, then cuts the rest.
    ///
    /// The HTTP port answers until the last, so that the drain can be watched.
    /// Returns soon after `deadline` whatever clients do.
    pub async fn drain(self, deadline: Instant) -> DrainReport {
        let began = Instant::now();
        self.grpc.accept.cancel();
        // New daemons may take the path from here on.
        drop(self.socket_file);
        self.grpc.closing.drain.cancel();
        let mut aborted_connections = 0;
        if tokio::time::timeout_at(deadline, self.grpc.tasks.wait()).await.is_err() {
            aborted_connections = self.grpc.tasks.len();
            self.grpc.closing.abort.cancel();
            let _ = tokio::time::timeout(ABORT_GRACE, self.grpc.tasks.wait()).await;
        }
        self.http.accept.cancel();
        self.http.closing.drain.cancel();
        // An open page is not worth waiting for.
        if tokio::time::timeout(ABORT_GRACE / 2, self.http.tasks.wait()).await.is_err() {
            self.http.closing.abort.cancel();
            let _ = tokio::time::timeout(ABORT_GRACE / 2, self.http.tasks.wait()).await;
        }
        DrainReport { aborted_connections, took: began.elapsed() }
    }
}

impl Half {
    fn new() -> Self {
        Self {
            accept: CancellationToken::new(),
            closing: Closing { drain: CancellationToken::new(), abort: CancellationToken::new() },
            tasks: TaskTracker::new(),
        }
    }
}

impl Drop for Half {
    /// An edge that is dropped without a drain leaves no task behind.
    fn drop(&mut self) {
        self.accept.cancel();
        self.closing.abort.cancel();
    }
}
