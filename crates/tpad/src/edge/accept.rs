//! The accept loops: one task a listener, one task a connection, a pause after a failure.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::io::Socket;
use super::line::Place;
use super::metrics::{ConnectionOutcome, EdgeMetrics, ListenerKind, ListenerLabel};
use super::peer::Peer;
use super::threads::Threads;
use super::unpaced::Unpaced;

/// The pause after a failed accept, doubled up to the longest while it goes on failing: out
/// of descriptors, the listener stays readable and accept fails at once, for ever.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A bound listener of either family.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(Unpaced),
    Unix(UnixListener),
}

/// How one listener's connections are accepted.
#[derive(Debug)]
pub(super) struct Acceptor {
    pub(super) listener: Listener,
    pub(super) kind: ListenerKind,
    pub(super) slots: Arc<Semaphore>,
    pub(super) threads: Arc<Threads>,
    /// Sent to a connection that gets no slot.
    pub(super) farewell: &'static [u8],
    pub(super) metrics: EdgeMetrics,
}

impl Listener {
    async fn accept(&self) -> io::Result<(Socket, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                // Replies are written whole; waiting for more only delays their last bytes.
                // A peer that is gone already is noticed when it is read.
                let _ = socket.set_nodelay(true);
                // No TCP_NOTSENT_LOWAT: 512 KiB took a twelfth of the throughput, 128 KiB
                // a sixth, and what lies unsent in the kernel is 4 MiB at most.
                Ok((Socket::Tcp(socket), peer))
            }
            Self::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                let credentials = socket.peer_cred().ok();
                let peer = Peer::Unix {
                    uid: credentials.map(|c| c.uid()),
                    pid: credentials.and_then(|c| c.pid()),
                };
                Ok((Socket::Unix(socket), peer))
            }
        }
    }
}

impl Acceptor {
    /// Accepts until `stop`, then closes the listener. Each connection runs as a task of `connections`.
    pub(super) async fn run<F, C>(self, stop: CancellationToken, connections: TaskTracker, serve: F)
    where
        F: Fn(Socket, Peer, Option<Place>) -> C + Clone + Send + 'static,
        C: Future<Output = ConnectionOutcome> + Send + 'static,
    {
        let mut pause = FIRST_PAUSE;
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, peer)) => {
                    if failing {
                        tracing::warn!(listener = ?self.kind, "accepting connections again");
                    }
                    (failing, pause) = (false, FIRST_PAUSE);
                    self.admit(socket, peer, &connections, &serve);
                }
                // That connection is off the queue: nothing to wait for.
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    self.metrics.accept_errors.inc();
                    if !failing {
                        failing = true;
                        tracing::warn!(listener = ?self.kind, %error, "cannot accept connections; trying again");
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn admit<F, C>(&self, socket: Socket, peer: Peer, connections: &TaskTracker, serve: &F)
    where
        F: Fn(Socket, Peer, Option<Place>) -> C + Clone + Send + 'static,
        C: Future<Output = ConnectionOutcome> + Send + 'static,
    {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            socket.write_farewell(self.farewell);
            self.metrics.connection_ended(self.kind, ConnectionOutcome::Refused);
            tracing::debug!(%peer, "connection refused: all slots are taken");
            return;
        };
        let open = Open::new(
            self.metrics.connections.get_or_create_owned(&ListenerLabel { listener: self.kind }),
        );
        let (metrics, kind) = (self.metrics.clone(), self.kind);
        let ended = move |outcome| {
            metrics.connection_ended(kind, outcome);
            tracing::debug!(%peer, ?outcome, "connection ended");
            drop((open, slot));
        };
        let Some(seat) = self.threads.seat() else {
            let connection = serve(socket, peer, None);
            connections.spawn(async move { ended(connection.await) });
            return;
        };
        // Its readiness is to be told to the thread that serves it.
        let socket = match socket.detached() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!(%error, %peer, "a connection could not be given to its thread");
                return ended(ConnectionOutcome::Failed);
            }
        };
        let (serve, place) = (serve.clone(), seat.place());
        let served = async move {
            let outcome = match socket.attached() {
                Ok(socket) => serve(socket, peer, Some(place)).await,
                Err(error) => {
                    tracing::warn!(%error, %peer, "a connection could not be watched");
                    ConnectionOutcome::Failed
                }
            };
            ended(outcome);
        };
        let seat = Arc::new(seat);
        let held = Arc::clone(&seat);
        seat.spawn(connections, async move {
            served.await;
            drop(held);
        });
    }
}

/// An open connection on the gauge.
struct Open(prometheus_client::metrics::gauge::Gauge);

impl Open {
    fn new(gauge: prometheus_client::metrics::gauge::Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Whether it was the peer that gave up before it was accepted.
fn is_the_peers(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}
