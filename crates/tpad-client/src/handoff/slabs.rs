//! The slabs that this process has mapped.

use std::collections::BTreeMap;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use tpad_proto::handoff::v1 as wire;

use super::link::Shared;
use super::mapping::Mapping;
use crate::Error;

/// Mapped slabs, and those that the daemon asked for and something still reads.
#[derive(Debug)]
pub(super) struct Slabs {
    mapped: RwLock<BTreeMap<u64, Arc<Slab>>>,
    leaving: Mutex<Vec<(u64, Weak<Gone>)>>,
    shared: Arc<Shared>,
}

/// What slots begin at multiples of.
pub(super) const SLOT_UNIT: u64 = 4096;

/// A slab, mapped.
#[derive(Debug)]
pub(super) struct Slab {
    mapping: Mapping,
    slot_bytes: u64,
    /// Ends after the mapping: then the memory is not mapped any more.
    gone: Arc<Gone>,
}

/// Has the task look whether the daemon waits for the end of what is dropped with this.
#[derive(Debug)]
pub(super) struct Gone(pub(super) Arc<Shared>);

impl Slabs {
    pub(super) fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let (mapped, leaving) = (RwLock::default(), Mutex::default());
        Arc::new(Self { mapped, leaving, shared: Arc::clone(shared) })
    }

    /// Maps a slab. The descriptor is not needed any more then.
    pub(super) fn map(&self, slab: &wire::Slab, file: OwnedFd) -> Result<(), Error> {
        let (id, bytes, slot_bytes) = (slab.slab, slab.bytes, slab.slot_bytes);
        let wrong = |error: io::Error| Error::protocol(format!("slab {id}"), format!("{error}"));
        let mapping = Mapping::new(file.as_fd(), bytes).map_err(wrong)?;
        let slab = Slab { mapping, slot_bytes, gone: Arc::new(Gone(Arc::clone(&self.shared))) };
        let mut mapped = self.mapped.write().unwrap_or_else(PoisonError::into_inner);
        let replaced = mapped.insert(id, Arc::new(slab));
        drop(mapped);
        drop(replaced);
        Ok(())
    }

    pub(super) fn get(&self, slab: u64) -> Option<Arc<Slab>> {
        self.mapped.read().unwrap_or_else(PoisonError::into_inner).get(&slab).cloned()
    }

    /// Unmaps slabs, each as soon as nothing reads it.
    pub(super) fn forget(&self, slabs: &[u64]) {
        for id in slabs {
            let mut mapped = self.mapped.write().unwrap_or_else(PoisonError::into_inner);
            let slab = mapped.remove(id);
            drop(mapped);
            let gone = slab.as_ref().map(|slab| Arc::downgrade(&slab.gone));
            self.leaving().push((*id, gone.unwrap_or_default()));
        }
    }

    /// Unmaps all of them, each as soon as nothing reads it: the connection is over.
    pub(super) fn clear(&self) {
        let mapped =
            std::mem::take(&mut *self.mapped.write().unwrap_or_else(PoisonError::into_inner));
        drop(mapped);
    }

    /// Those of them that are unmapped by now.
    pub(super) fn forgotten(&self) -> Vec<u64> {
        let gone = |(_, gone): &mut (u64, Weak<Gone>)| gone.strong_count() == 0;
        self.leaving().extract_if(.., gone).map(|(id, _)| id).collect()
    }

    fn leaving(&self) -> MutexGuard<'_, Vec<(u64, Weak<Gone>)>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slab {
    /// The bytes of each of its slots.
    pub(super) fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Where a slot begins; `None` if it is none of the slab's.
    pub(super) fn slot(&self, slot: u32) -> Option<usize> {
        if !self.slot_bytes.is_multiple_of(SLOT_UNIT) {
            // Tensors would not begin where their readers count on.
            return None;
        }
        let start = u64::from(slot).checked_mul(self.slot_bytes)?;
        let end = start.checked_add(self.slot_bytes)?;
        if end > self.mapping.bytes() as u64 {
            return None;
        }
        usize::try_from(start).ok()
    }
}

impl Deref for Slab {
    type Target = Mapping;

    fn deref(&self) -> &Mapping {
        &self.mapping
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.woken.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    fn slab(slab: u64) -> (wire::Slab, OwnedFd) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("slab", flags).expect("a memfd");
        ftruncate(&file, 8192).expect("it is writable");
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::FUTURE_WRITE).expect("sealed");
        (wire::Slab { slab, bytes: 8192, slot_bytes: 4096, device: String::new() }, file)
    }

    #[tokio::test]
    async fn a_slab_that_is_read_is_forgotten_later() {
        let shared = Shared::new("unix:///nowhere".to_owned());
        let slabs = Slabs::new(&shared);
        for id in [1, 2] {
            let (slab, file) = slab(id);
            slabs.map(&slab, file).expect("it is sealed");
        }
        let read = slabs.get(2).expect("it is mapped");
        // The daemon may ask for what it never sent: it is not mapped.
        slabs.forget(&[1, 2, 3]);
        assert!(slabs.get(1).is_none() && slabs.get(2).is_none());
        assert_eq!(slabs.forgotten(), [1, 3]);
        // Sent again meanwhile, it is another mapping.
        let (again, file) = slab(2);
        slabs.map(&again, file).expect("it is sealed");
        assert!(slabs.forgotten().is_empty());
        // Of the end of 1.
        shared.woken.notified().await;
        drop(read);
        shared.woken.notified().await;
        assert_eq!(slabs.forgotten(), [2], "the task looks without being asked");
        assert!(slabs.get(2).is_some());
    }

    #[test]
    fn slots_lie_within_their_slab() {
        let slabs = Slabs::new(&Shared::new(String::new()));
        let (slab, file) = slab(1);
        slabs.map(&slab, file).expect("it is sealed");
        let slab = slabs.get(1).expect("it is mapped");
        assert_eq!(
            [0, 1, 2, u32::MAX].map(|slot| slab.slot(slot)),
            [Some(0), Some(4096), None, None]
        );
    }
}
