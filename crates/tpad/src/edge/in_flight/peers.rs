//! Who shares the bytes in flight: peers, each with its connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::edge::peer::Peer;

/// What makes two connections one peer's: the address over TCP, the user over the Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::edge) enum PeerName {
    Address(IpAddr),
    /// `None`: the kernel did not say.
    User(Option<u32>),
}

/// What is held for one peer.
#[derive(Debug)]
pub(super) struct PeerShare {
    name: PeerName,
    pub(super) bytes: AtomicU64,
    /// Connections of which HTTP/2 holds bytes.
    pub(super) active: AtomicUsize,
    requests: AtomicUsize,
    /// Streams that wait for room.
    pub(super) waiting: AtomicUsize,
    pub(super) room: Arc<Notify>,
}

/// A request's place among those in progress.
#[derive(Debug)]
pub(in crate::edge) struct Place {
    peer: Arc<PeerShare>,
    _permit: OwnedSemaphorePermit,
}

/// Why a request got no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::edge) enum NoPlace {
    /// All are taken.
    Full,
    /// The peer has as many as are free: the others are for others.
    OfPeer,
}

/// The peers that have connections.
#[derive(Debug, Default)]
pub(super) struct Peers {
    known: Mutex<HashMap<PeerName, (Arc<PeerShare>, usize)>>,
}

impl PeerName {
    pub(in crate::edge) fn of(peer: &Peer) -> Self {
        match peer {
            // A socket that takes IPv6 and IPv4 alike shows the latter mapped.
            Peer::Tcp { remote, .. } => Self::Address(remote.ip().to_canonical()),
            Peer::Unix { uid, .. } => Self::User(*uid),
        }
    }
}

impl PeerShare {
    fn new(name: PeerName) -> Self {
        Self {
            name,
            bytes: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            room: Arc::new(Notify::new()),
        }
    }

    pub(super) fn name(&self) -> PeerName {
        self.name
    }

    /// A place in `requests`, of which the peer may have as many as are free.
    pub(super) fn enter(self: &Arc<Self>, requests: &Arc<Semaphore>) -> Result<Place, NoPlace> {
        let free = requests.available_permits();
        let permit = Arc::clone(requests).try_acquire_owned().map_err(|_| NoPlace::Full)?;
        let held = self.requests.fetch_add(1, Ordering::AcqRel);
        let place = Place { peer: Arc::clone(self), _permit: permit };
        if held > free { Err(NoPlace::OfPeer) } else { Ok(place) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.peer.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Peers {
    pub(super) fn join(&self, name: PeerName) -> Arc<PeerShare> {
        let mut known = self.known();
        let (share, connections) =
            known.entry(name).or_insert_with(|| (Arc::new(PeerShare::new(name)), 0));
        *connections += 1;
        Arc::clone(share)
    }

    /// A connection of the peer has ended; what is known of a peer ends with its last.
    pub(super) fn leave(&self, name: PeerName) {
        let mut known = self.known();
        if let Some((_, connections)) = known.get_mut(&name) {
            *connections -= 1;
            if *connections == 0 {
                known.remove(&name);
            }
        }
    }

    /// Wakes a stream of each peer that waits and has room.
    pub(super) fn wake(&self, free: u64) {
        for (peer, _) in self.known().values() {
            let waits = peer.waiting.load(Ordering::SeqCst) > 0;
            if waits && peer.bytes.load(Ordering::SeqCst) < free {
                peer.room.notify_one();
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<PeerName, (Arc<PeerShare>, usize)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> PeerName {
        PeerName::User(Some(uid))
    }

    #[test]
    fn an_address_is_one_peer_whatever_its_ports_and_its_family_of_socket() {
        let tcp = |remote: &str| {
            PeerName::of(&Peer::Tcp { local: None, remote: remote.parse().expect("an address") })
        };
        assert_eq!(tcp("10.0.0.7:1"), tcp("10.0.0.7:2"));
        assert_eq!(tcp("10.0.0.7:1"), tcp("[::ffff:10.0.0.7]:1"));
        assert_ne!(tcp("10.0.0.7:1"), tcp("10.0.0.8:1"));
        let unix = |uid| PeerName::of(&Peer::Unix { uid: Some(uid), pid: None });
        assert_eq!(unix(7), PeerName::of(&Peer::Unix { uid: Some(7), pid: Some(9) }));
        assert_ne!(unix(7), unix(8));
    }

    #[test]
    fn a_peer_is_known_until_its_last_connection_ends() {
        let peers = Peers::default();
        let (first, second) = (peers.join(user(1)), peers.join(user(1)));
        assert!(Arc::ptr_eq(&first, &second));
        peers.leave(user(1));
        assert!(Arc::ptr_eq(&first, &peers.join(user(1))));
        peers.leave(user(1));
        peers.leave(user(1));
        assert!(peers.known().is_empty());
    }

    #[test]
    fn a_peer_may_have_as_many_requests_as_are_free() {
        let (peers, requests) = (Peers::default(), Arc::new(Semaphore::new(9)));
        let (greedy, modest) = (peers.join(user(1)), peers.join(user(2)));
        let mut held: Vec<Place> = Vec::new();
        let refusal = loop {
            match greedy.enter(&requests) {
                Ok(place) => held.push(place),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!((held.len(), refusal), (5, NoPlace::OfPeer));
        let others: Vec<_> = (0..4).map_while(|_| modest.enter(&requests).ok()).collect();
        assert_eq!(others.len(), 3, "of four that are left");
        drop(others);
        held.pop();
        assert!(greedy.enter(&requests).is_ok(), "what was refused took no place");
    }
}
