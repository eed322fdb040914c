//! One connection's share of the bytes in flight, and of the time to write them.

mod waiting;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

pub(in crate::edge) use self::waiting::Waiting;

use self::waiting::Woken;
use super::InFlight;
use super::peers::{NoPlace, PeerShare, Place};
use crate::edge::stall::Stall;
use crate::edge::stream::StreamState;

/// Handed to HTTP/2 at a time: its frame size with clients that ask for speed, and
/// the unit in which a client's progress is seen. 2 MiB read at 4.3 GB/s, 1 MiB at
/// 3.9, 512 KiB at 3.5 and 256 KiB at 2.9; 4 MiB at 4.4, for twice the memory of each
/// stream. Frames are what the client takes, if that is less: a small reply beside
/// bulk waits for those (docs/performance.md, "Frames and windows").
pub(in crate::edge) const PIECE_BYTES: u64 = 2 << 20;

/// The smallest piece, so that many streams of one connection, or no room at all,
/// do not end in crumbs.
pub(super) const LEAST_PIECE_BYTES: u64 = 64 << 10;

/// HTTP/2 writes a frame of each stream in turn. This is what a round of all of a
/// connection's streams may come to, and so how long a small reply waits for bulk
/// on its own connection. Sixteen streams keep pieces of 1 MiB: with a round of 4 MiB
/// they lost a sixth of their throughput, with 1 MiB half.
const ROUND_BYTES: u64 = 16 << 20;

/// What one connection writes before others on its thread have their turn, while no other
/// peer writes. One alone reads 5.3 GB/s with turns of 2 or 1 MiB, 5.1 with 512 KiB and 4.9
/// with 256.
const TURN_BYTES: u64 = 2 << 20;

/// The same where a peer that is alone has more than one connection on a thread. Others of
/// the thread wait for two such turns at most, however many stand in line. Against
/// 512 KiB it reads 1.03 times as fast, and a small request beside four takes 0.9 in place of
/// 1.3 ms at the 99th percentile, 0.65 in place of 0.3 at the median (docs/performance.md,
/// "Turns").
const LONE_TURN_BYTES: u64 = 1 << 20;

/// What a whole peer writes while others write too. Near what a socket on loopback takes at
/// a time (some 380 KiB here), so that who has one connection can use its turn.
const SHARED_TURN_BYTES: u64 = 512 << 10;

/// The least of it for one of a peer's connections.
const LEAST_TURN_BYTES: u64 = 32 << 10;

/// Without room and without a byte of the connection moving for this long, its new
/// requests are refused: with a client that reads at 10 MB/s one moves many times a second.
const SATURATED_AFTER: Duration = Duration::from_secs(1);

/// What is held for one connection.
#[derive(Debug)]
pub(in crate::edge) struct Share {
    all: Arc<InFlight>,
    peer: Arc<PeerShare>,
    bytes: AtomicU64,
    /// Streams that have something to send.
    streams: AtomicUsize,
    stall: Stall,
    moved: Arc<Notify>,
    /// Streams that wait for the connection's own bound, and for `moved` alone.
    at_bound: Arc<AtomicUsize>,
}

/// A stream that has something to send.
pub(in crate::edge) struct Sends(Arc<Share>);

/// What a stream may do now.
enum Room {
    Send(u64),
    /// Wait until the peer has room.
    Wait,
    /// Wait until the connection is below its own bound.
    AtBound,
}

impl Share {
    pub(super) fn new(all: Arc<InFlight>, peer: Arc<PeerShare>) -> Self {
        Self {
            all,
            peer,
            bytes: AtomicU64::new(0),
            streams: AtomicUsize::new(0),
            stall: Stall::new(),
            moved: Arc::new(Notify::new()),
            at_bound: Arc::default(),
        }
    }

    /// A request's place, of which a peer may have as many as are free.
    pub(in crate::edge) fn enter(&self, requests: &Arc<Semaphore>) -> Result<Place, NoPlace> {
        self.peer.enter(requests)
    }

    /// Whether the connection has had no room, and nothing of it has moved, for a while.
    pub(in crate::edge) fn saturated(&self) -> bool {
        let held = self.bytes.load(Ordering::SeqCst);
        held > 0
            && (held >= self.left() || held >= self.all.connection_limit)
            && self.stall.lasted().is_some_and(|lasted| lasted >= SATURATED_AFTER)
    }

    /// Ready with the bytes that `stream` may send now; `waiting` is its place in the queue.
    pub(in crate::edge) fn poll_room(
        &self,
        stream: &StreamState,
        waiting: &mut Option<Waiting>,
        cx: &mut Context<'_>,
    ) -> Poll<usize> {
        let mut woken = None;
        loop {
            let at_bound = match self.room(stream, cx) {
                Room::Send(bytes) => {
                    if waiting.take().is_some() || woken.is_some() {
                        self.pass_on();
                    }
                    // At most PIECE_BYTES.
                    return Poll::Ready(usize::try_from(bytes).unwrap_or(usize::MAX));
                }
                Room::Wait => false,
                Room::AtBound => true,
            };
            match waiting {
                Some(waits) if waits.is_at_bound() == at_bound => match waits.poll(cx) {
                    Poll::Ready(by) => {
                        woken = Some(by);
                        *waiting = None;
                    }
                    Poll::Pending => return Poll::Pending,
                },
                // In the queue first, then looking again: no wake-up is missed.
                _ => {
                    *waiting = Some(Waiting::of(self, at_bound));
                    if at_bound && woken.take() == Some(Woken::ByRoom) {
                        // It was meant for one that can use it, and this one is not in
                        // that queue any more.
                        self.peer.room.notify_one();
                    }
                }
            }
        }
    }

    /// What HTTP/2 holds of the connection's replies.
    pub(in crate::edge) fn held_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts a stream that has something to send, until what is returned is dropped.
    ///
    /// Not by whether HTTP/2 holds bytes of it: of those with small pieces many have none there
    /// at a time, and the next would get large ones.
    pub(in crate::edge) fn sends(self: &Arc<Self>) -> Sends {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Sends(Arc::clone(self))
    }

    /// Counts a piece that is handed to HTTP/2.
    pub(in crate::edge) fn add(&self, bytes: u64) {
        if self.bytes.fetch_add(bytes, Ordering::SeqCst) == 0 {
            self.all.active_connections.fetch_add(1, Ordering::Relaxed);
            if self.peer.active.fetch_add(1, Ordering::Relaxed) == 0 {
                self.all.active_peers.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.peer.bytes.fetch_add(bytes, Ordering::SeqCst);
        self.all.add(bytes);
        self.stall.begin();
    }

    /// A piece was taken or dropped.
    pub(in crate::edge) fn remove(&self, bytes: u64) {
        let before = self.bytes.fetch_sub(bytes, Ordering::SeqCst);
        if before == bytes {
            self.stall.clear();
            self.all.active_connections.fetch_sub(1, Ordering::Relaxed);
            if self.peer.active.fetch_sub(1, Ordering::Relaxed) == 1 {
                self.all.active_peers.fetch_sub(1, Ordering::Relaxed);
            }
            // More may have been added between the lines above.
            if self.bytes.load(Ordering::SeqCst) > 0 {
                self.stall.begin();
            }
        } else {
            self.stall.progress();
        }
        self.peer.bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.all.sent.inc_by(bytes);
        self.all.remove(bytes);
        if self.all.waiting.load(Ordering::SeqCst) > 0 || self.at_bound.load(Ordering::SeqCst) > 0 {
            self.moved.notify_one();
        }
    }

    /// What the connection may write before others have their turn. Connections
    /// write in the order in which they stand in line, so equal turns are equal shares of
    /// what the daemon can write; a peer's connections share one, and a peer that is alone
    /// has longer ones.
    pub(in crate::edge) fn turn_bytes(&self) -> u64 {
        if self.all.active_peers.load(Ordering::Relaxed) < 2 {
            let connections = self.all.active_connections.load(Ordering::Relaxed).max(1);
            // They are spread evenly over the threads.
            let beside = connections.div_ceil(self.all.threads) as u64;
            return (TURN_BYTES / beside).max(LONE_TURN_BYTES);
        }
        let connections = self.peer.active.load(Ordering::Relaxed).max(1) as u64;
        (SHARED_TURN_BYTES / connections).max(LEAST_TURN_BYTES)
    }

    /// What the connection's peer may have, less what it has.
    fn left(&self) -> u64 {
        self.all.free().saturating_sub(self.peer.bytes.load(Ordering::SeqCst))
    }

    fn room(&self, stream: &StreamState, cx: &Context<'_>) -> Room {
        let held = self.bytes.load(Ordering::SeqCst);
        if held >= self.left() {
            if held == 0 { Room::Send(LEAST_PIECE_BYTES) } else { Room::Wait }
        } else if held < self.bound() {
            Room::Send(self.piece_bytes())
        } else if stream.holds_back(cx.waker()) {
            Room::AtBound
        } else {
            // Streams that are not read stop no other of their connection.
            Room::Send(LEAST_PIECE_BYTES)
        }
    }

    /// A power of two, so that pieces are whole parts of a payload.
    fn piece_bytes(&self) -> u64 {
        let streams = self.streams.load(Ordering::Relaxed).max(1) as u64;
        let part = ROUND_BYTES / streams.next_power_of_two();
        let part = part.min(1 << self.bound().max(1).ilog2());
        part.clamp(LEAST_PIECE_BYTES, PIECE_BYTES)
    }

    /// What the connection may hold before it waits: the configured bound, and where many
    /// hold something an equal part of half of all. Else those that are not read would hold
    /// so much that the others had crumbs left.
    fn bound(&self) -> u64 {
        let connections = self.all.active_connections.load(Ordering::Relaxed).max(1) as u64;
        let part = self.all.limit / 2 / connections;
        self.all.connection_limit.min(part.max(LEAST_PIECE_BYTES))
    }

    /// Wakes the next: the one that passed may have nothing to send yet.
    fn pass_on(&self) {
        let held = self.bytes.load(Ordering::SeqCst);
        let left = self.left();
        if held == 0 || (held < left && held < self.bound()) {
            self.moved.notify_one();
        }
        if left > 0 && self.peer.waiting.load(Ordering::SeqCst) > 0 {
            self.peer.room.notify_one();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.all.peers.leave(self.peer.name());
    }
}

impl Drop for Sends {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
