//! The bytes that the edge holds for clients: bounded over all connections, and shared out.
//!
//! A piece of a reply counts from when it is handed to HTTP/2 until HTTP/2 has
//! written or dropped it. A peer may hold as many bytes as nobody holds, and a
//! connection as many as its peer has left of that. So however much n peers want,
//! one part in n + 1 of the bound stays free for whoever comes: nobody is counted
//! and nothing is reserved. Beside that a connection has a bound of its own,
//! which is lower where there are many.
//!
//! Clients that do not read cannot stop one that does: a connection that holds
//! nothing may always send a small piece. So what can be held is the bound, a
//! small piece for each connection, and a piece for each thread that passed the
//! gate at the same moment.
//!
//! All of it is atomics while there is room. Only a stream that has to wait, and
//! whoever makes room while one waits, take a lock.

mod peers;
mod share;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

pub(super) use self::peers::{NoPlace, PeerName, Place};
pub(super) use self::share::{PIECE_BYTES, Sends, Share, Waiting};

use self::peers::Peers;
use super::metrics::EdgeMetrics;

/// What is held for all connections.
#[derive(Debug)]
pub(super) struct InFlight {
    limit: u64,
    connection_limit: u64,
    /// On which connections are served.
    threads: usize,
    bytes: AtomicU64,
    /// Those of them that requests brought.
    of_requests: AtomicU64,
    /// Streams that wait for room: while there are none nobody is looked for.
    waiting: AtomicUsize,
    /// Peers of which HTTP/2 holds bytes.
    active_peers: AtomicUsize,
    /// Connections of which it does.
    active_connections: AtomicUsize,
    peers: Peers,
    gauge: Gauge,
    /// Bytes of replies that were taken or dropped.
    sent: Counter,
}

impl InFlight {
    /// `limit` is for all connections, which `threads` serve, `connection_limit` for each.
    pub(super) fn new(
        limit: u64,
        connection_limit: u64,
        threads: usize,
        metrics: &EdgeMetrics,
    ) -> Self {
        Self {
            limit,
            connection_limit,
            threads,
            bytes: AtomicU64::new(0),
            of_requests: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            active_peers: AtomicUsize::new(0),
            active_connections: AtomicUsize::new(0),
            peers: Peers::default(),
            gauge: metrics.in_flight_bytes.clone(),
            sent: metrics.sent_bytes.clone(),
        }
    }

    /// The share of a new connection of `peer`.
    pub(super) fn join(self: &Arc<Self>, peer: PeerName) -> Share {
        Share::new(Arc::clone(self), self.peers.join(peer))
    }

    /// Counts what a request brought, and says what all requests hold.
    pub(super) fn add_request(&self, bytes: u64) -> u64 {
        self.add(bytes);
        self.of_requests.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes)
    }

    /// Gives it back.
    pub(super) fn remove_request(&self, bytes: u64) {
        self.of_requests.fetch_sub(bytes, Ordering::AcqRel);
        self.remove(bytes);
    }

    /// The part of the bound that requests may hold: with all of it they could
    /// keep every reply from being sent.
    pub(super) fn for_requests(&self) -> u64 {
        self.limit / 2
    }

    /// What nobody holds.
    fn free(&self) -> u64 {
        self.limit.saturating_sub(self.bytes.load(Ordering::SeqCst))
    }

    fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
        self.gauge.inc_by(signed(bytes));
    }

    fn remove(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.gauge.dec_by(signed(bytes));
        // A stream that begins to wait counts itself first and then looks again:
        // either it sees the room or it is seen here.
        if bytes > 0 && self.waiting.load(Ordering::SeqCst) > 0 {
            self.peers.wake(self.free());
        }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
