//! Which slabs a worker has been sent, and which it is to give up.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use tokio::time::Instant;
use tpad_hbm::SharedDeviceSlab;
use tpad_proto::handoff::v1::Slab;
use tpad_store::SharedSlab;

/// A worker's slabs of one kind.
#[derive(Debug)]
pub(super) struct Slabs<S>(BTreeMap<u64, Sent<S>>);

/// Memory that a worker is sent.
pub(super) trait Shared {
    /// Since when it is wanted for something else, and nothing lies in it.
    fn wanted_since(&self) -> Option<Instant>;

    /// What a worker needs to map it.
    ///
    /// # Errors
    /// When there is no descriptor for it.
    fn described(&self) -> io::Result<(Slab, OwnedFd)>;
}

#[derive(Debug)]
struct Sent<S> {
    slab: S,
    state: State,
}

/// Where the question stands whether the worker gives a slab up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It was not asked.
    Mapped,
    /// It was asked, and has not answered.
    Asked(Instant),
    /// A lease named the slab meanwhile, so it was sent once more: the answer is to a
    /// question that does not stand any more.
    SentAgain,
}

impl<S> Default for Slabs<S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<S: Shared> Slabs<S> {
    /// What goes with a lease of a block in this slab: nothing if the worker has it.
    ///
    /// # Errors
    /// When this process has no descriptor left.
    pub(super) fn send(
        &mut self,
        id: u64,
        share: impl FnOnce() -> S,
    ) -> io::Result<Option<(Slab, OwnedFd)>> {
        match self.0.get_mut(&id) {
            Some(Sent { state: State::Mapped | State::SentAgain, .. }) => Ok(None),
            Some(sent) => {
                let described = sent.slab.described()?;
                sent.state = State::SentAgain;
                Ok(Some(described))
            }
            None => {
                let slab = share();
                let described = slab.described()?;
                self.0.insert(id, Sent { slab, state: State::Mapped });
                Ok(Some(described))
            }
        }
    }

    /// The slabs that are wanted for something else, of those that nothing `uses`: the
    /// worker is to be asked to give them up.
    pub(super) fn ask_back(&mut self, uses: impl Fn(u64) -> bool) -> Vec<u64> {
        let wanted = self.0.iter_mut().filter(|(id, sent)| {
            sent.state == State::Mapped && sent.slab.wanted_since().is_some() && !uses(**id)
        });
        let now = Instant::now();
        let ask = |(id, sent): (&u64, &mut Sent<S>)| {
            sent.state = State::Asked(now);
            *id
        };
        wanted.map(ask).collect()
    }

    /// These were not sent after all.
    pub(super) fn take_back(&mut self, slabs: &[u64]) {
        for id in slabs {
            self.0.remove(id);
        }
    }

    /// Since when the worker owes an answer. It owes none for a slab with blocks in it
    /// again, which it may have found in a directory and read.
    pub(super) fn asked_since(&self) -> Option<Instant> {
        let asked = self.0.values().filter_map(|sent| match sent.state {
            State::Asked(asked) => Some(asked.max(sent.slab.wanted_since()?)),
            State::Mapped | State::SentAgain => None,
        });
        asked.min()
    }

    /// The worker has given these up.
    pub(super) fn given_up(&mut self, slabs: &[u64]) {
        for id in slabs {
            match self.0.get_mut(id) {
                Some(Sent { state: State::Asked(_), .. }) => {
                    self.0.remove(id);
                }
                Some(sent) if sent.state == State::SentAgain => sent.state = State::Mapped,
                // It was not asked: it is believed when it is.
                Some(_) | None => {}
            }
        }
    }
}

impl Shared for SharedSlab {
    fn wanted_since(&self) -> Option<Instant> {
        Self::wanted_since(self).map(Instant::from_std)
    }

    fn described(&self) -> io::Result<(Slab, OwnedFd)> {
        let (slab, bytes, slot_bytes) = (Self::id(self), self.bytes(), self.slot_bytes());
        Ok((Slab { slab, bytes, slot_bytes, device: String::new() }, self.descriptor()?))
    }
}

impl Shared for SharedDeviceSlab {
    fn wanted_since(&self) -> Option<Instant> {
        Self::wanted_since(self)
    }

    fn described(&self) -> io::Result<(Slab, OwnedFd)> {
        let (slab, bytes, slot_bytes) = (Self::id(self), self.bytes(), self.slot_bytes());
        let device = self.uuid().to_string();
        Ok((Slab { slab, bytes, slot_bytes, device }, self.descriptor()?))
    }
}

#[cfg(test)]
mod tests {
    use tpad_store::{Arena, BlockBytes};

    use super::*;

    const NONE: [u64; 0] = [];

    fn send(
        slabs: &mut Slabs<SharedSlab>,
        block: &BlockBytes,
    ) -> io::Result<Option<(Slab, OwnedFd)>> {
        slabs.send(block.place().slab, || block.shared_slab())
    }

    #[test]
    fn a_slab_is_sent_once_until_it_is_given_up() {
        let arena = Arena::new(64 << 10);
        let block = |bytes| arena.slot(bytes).expect("mapped").expect("room").freeze();
        let mut slabs = Slabs::default();
        let first = block(4096);
        let id = first.place().slab;
        let sent = send(&mut slabs, &first).expect("descriptors").expect("it is new");
        assert_eq!(sent.0.slab, id);
        assert!(send(&mut slabs, &first).expect("descriptors").is_none(), "it has it");
        assert_eq!(slabs.ask_back(|_| false), NONE, "nobody wants it");

        // The whole arena for one block: the empty slab stands in the way.
        drop(first);
        assert!(arena.slot(64 << 10).expect("mapped").is_none());
        assert_eq!(slabs.ask_back(|slab| slab == id), NONE, "a lease names it");
        assert_eq!(slabs.ask_back(|_| false), [id]);
        assert_eq!(slabs.ask_back(|_| false), NONE, "once");
        assert!(arena.slot(64 << 10).expect("mapped").is_none(), "it is still mapped there");
        slabs.given_up(&[id, 77]);
        assert!(arena.slot(64 << 10).expect("mapped").is_some());
    }

    #[test]
    fn a_slab_that_is_leased_while_it_is_asked_for_is_sent_again_and_stays() {
        let arena = Arena::new(64 << 10);
        let mut slabs = Slabs::default();
        let block = || arena.slot(4096).expect("mapped").expect("room").freeze();
        let first = block();
        let id = first.place().slab;
        send(&mut slabs, &first).expect("descriptors").expect("it is new");
        drop(first);
        assert!(arena.slot(64 << 10).expect("mapped").is_none());
        assert_eq!(slabs.ask_back(|_| false), [id]);
        let second = block();
        assert_eq!(second.place().slab, id);
        let again = send(&mut slabs, &second).expect("descriptors").expect("sent again");
        assert_eq!(again.0.slab, id);
        assert!(send(&mut slabs, &second).expect("descriptors").is_none());
        // The answer to the first question.
        slabs.given_up(&[id]);
        assert!(send(&mut slabs, &second).expect("descriptors").is_none(), "it has it");
        slabs.given_up(&[id]);
        assert!(send(&mut slabs, &second).expect("descriptors").is_none(), "nobody asked");
    }
}
