//! A stream that waits until it may send another piece, and who makes room for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::super::InFlight;
use super::super::peers::PeerShare;
use super::Share;

/// A stream that waits until it may send another piece.
pub(in crate::edge) struct Waiting {
    moved: Pin<Box<OwnedNotified>>,
    /// `None` at the connection's own bound: what others give back is of no use there, and
    /// a wake-up would be lost on it.
    room: Option<Pin<Box<OwnedNotified>>>,
    _counted: Counted,
}

/// Who woke a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    ByRoom,
    ByMoved,
}

/// A waiting stream, where those look who make room.
enum Counted {
    Waiting { all: Arc<InFlight>, peer: Arc<PeerShare> },
    AtBound(Arc<AtomicUsize>),
}

impl Waiting {
    /// In the queue of `share`'s peer, or `at_bound` in the connection's own.
    pub(super) fn of(share: &Share, at_bound: bool) -> Self {
        let enabled = |notify: &Arc<Notify>| {
            let mut notified = Box::pin(Arc::clone(notify).notified_owned());
            notified.as_mut().enable();
            notified
        };
        let moved = enabled(&share.moved);
        let room = (!at_bound).then(|| enabled(&share.peer.room));
        let counted = if at_bound {
            share.at_bound.fetch_add(1, Ordering::SeqCst);
            Counted::AtBound(Arc::clone(&share.at_bound))
        } else {
            Counted::waiting(Arc::clone(&share.all), Arc::clone(&share.peer))
        };
        Self { moved, room, _counted: counted }
    }

    /// Whether it waits for the connection's own bound alone.
    pub(super) fn is_at_bound(&self) -> bool {
        self.room.is_none()
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Woken> {
        // Dropping the other one hands its wake-up on if it had one.
        if self.room.as_mut().is_some_and(|room| room.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Woken::ByRoom);
        }
        self.moved.as_mut().poll(cx).map(|()| Woken::ByMoved)
    }
}

impl Counted {
    fn waiting(all: Arc<InFlight>, peer: Arc<PeerShare>) -> Self {
        peer.waiting.fetch_add(1, Ordering::SeqCst);
        all.waiting.fetch_add(1, Ordering::SeqCst);
        Self::Waiting { all, peer }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        match self {
            Self::Waiting { all, peer } => {
                all.waiting.fetch_sub(1, Ordering::SeqCst);
                peer.waiting.fetch_sub(1, Ordering::SeqCst);
            }
            Self::AtBound(waiting) => {
                waiting.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}
