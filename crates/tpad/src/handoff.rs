//! Handoff: workers of this machine use blocks where the daemon keeps them.
//!
//! A Unix socket of its own, because gRPC cannot carry file descriptors. What is said
//! there is in `proto/tpad/handoff/v1`, what it means in `docs/handoff.md`.

mod answer;
mod connection;
mod metrics;
mod peer;
mod slabs;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tpad_engine::Engine;
use tpad_proto::handoff::v1::Failure;

use self::connection::Connection;
pub(crate) use self::metrics::HandoffMetrics;
use self::peer::Credentials;
use crate::config::Handoff as HandoffConfig;
use crate::edge::{BindError, SocketFile, bind_unix};

/// The pause after a failed accept: out of descriptors, the next one fails as well.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often what workers do without a message is looked after: so long may a slot that
/// nobody reads any more stay out of use.
const TENDING: Duration = Duration::from_millis(100);

/// Peers that are told at a time why they are refused.
const FAREWELLS: usize = 64;

/// The handoff socket, bound.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: UnixListener,
    file: SocketFile,
    config: HandoffConfig,
}

/// The handoff socket, served. Dropped, it takes no more connections and its file goes;
/// what workers hold stays until the process ends.
#[derive(Debug)]
pub(crate) struct Handoff {
    stop: CancellationToken,
    /// Ends the looking after workers: what they let go of is wanted during the drain, too.
    _tending: DropGuard,
    connections: TaskTracker,
    path: std::path::PathBuf,
    /// Until it drains: new daemons may take the path from there on.
    file: Option<SocketFile>,
}

/// What connections share.
#[derive(Debug)]
struct Shared {
    engine: Arc<Engine>,
    config: HandoffConfig,
    metrics: HandoffMetrics,
    /// The daemon drains: no new leases.
    stop: CancellationToken,
}

impl Bound {
    /// Binds the socket, if there is to be one.
    pub(crate) fn bind(config: Option<&HandoffConfig>) -> Result<Option<Self>, BindError> {
        let Some(config) = config else { return Ok(None) };
        let (listener, file) = bind_unix("handoff.socket", &config.socket)?;
        Ok(Some(Self { listener, file, config: config.clone() }))
    }

    /// Serves it until it is dropped.
    pub(crate) fn serve(self, engine: &Arc<Engine>, metrics: HandoffMetrics) -> Handoff {
        let Self { listener, file, config } = self;
        let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
        let path = config.socket.path.clone();
        let shared =
            Arc::new(Shared { engine: Arc::clone(engine), config, metrics, stop: stop.clone() });
        let tending = CancellationToken::new();
        connections.spawn(tend(Arc::clone(engine), tending.clone()));
        connections.spawn(accept(listener, shared, connections.clone()));
        let tending = tending.drop_guard();
        Handoff { stop, _tending: tending, connections, path, file: Some(file) }
    }
}

impl Handoff {
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// From here on nothing is leased any more. What is leased stays: workers read it
    /// as long as they like, also after this process has ended.
    pub(crate) fn drain(&mut self) {
        self.file = None;
        self.stop.cancel();
        self.connections.close();
    }
}

impl Drop for Handoff {
    fn drop(&mut self) {
        self.drain();
    }
}

/// Accepts until the daemon drains.
async fn accept(listener: UnixListener, shared: Arc<Shared>, connections: TaskTracker) {
    let places = Arc::new(Semaphore::new(shared.config.connections));
    let farewells = Arc::new(Semaphore::new(FAREWELLS));
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted.and_then(|(socket, _)| Ok((Credentials::of(&socket)?, socket))) {
            Ok((peer, socket)) => {
                failing = false;
                let (refusal, place) = match shared.admit(&peer, &places) {
                    Ok(place) => (None, Some(place)),
                    Err(refusal) => {
                        (Some(refusal), Arc::clone(&farewells).try_acquire_owned().ok())
                    }
                };
                // Beyond them it is closed without a word.
                let Some(place) = place else { continue };
                let connection = Connection::new(Arc::clone(&shared), socket, peer, refusal);
                connections.spawn(Arc::clone(&shared).serve(connection, place));
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept handoff connections; trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Shared {
    /// A place for a peer that may have one, or why it gets none. Who is not admitted takes
    /// no place from those who are.
    fn admit(
        &self,
        peer: &Credentials,
        places: &Arc<Semaphore>,
    ) -> Result<OwnedSemaphorePermit, Failure> {
        if !self.config.admits(peer.uid, peer.gid) {
            return Err(answer::not_admitted(peer));
        }
        let place = Arc::clone(places).try_acquire_owned();
        place.map_err(|_| answer::full(self.config.connections))
    }

    async fn serve(self: Arc<Self>, connection: Connection, place: OwnedSemaphorePermit) {
        self.metrics.connected();
        let outcome = connection.run().await;
        self.metrics.ended(outcome);
        drop(place);
    }
}

/// Looks after workers until the handoff is dropped.
async fn tend(engine: Arc<Engine>, end: CancellationToken) {
    let mut next = tokio::time::interval(TENDING);
    next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while end.run_until_cancelled(next.tick()).await.is_some() {
        engine.tend_workers();
    }
}

/// What is read of a socket when it may be.
fn would_block(result: io::Result<bool>) -> io::Result<Option<bool>> {
    match result {
        Ok(more) => Ok(Some(more)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
