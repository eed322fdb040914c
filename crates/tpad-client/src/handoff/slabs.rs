//! The slabs that this process has mapped.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Weak};

use tpad_proto::handoff::v1::Slab;

use super::mapping::Mapping;
use crate::Error;

/// Mapped slabs, and those that the daemon asked for and something still reads.
#[derive(Debug, Default)]
pub(super) struct Slabs {
    mapped: BTreeMap<u64, Arc<Mapping>>,
    leaving: Vec<(u64, Weak<Mapping>)>,
}

impl Slabs {
    /// Maps a slab. The descriptor is not needed any more then.
    pub(super) fn map(&mut self, slab: &Slab, file: OwnedFd) -> Result<(), Error> {
        let wrong = |error| Error::protocol(format!("slab {}", slab.slab), format!("{error}"));
        let mapping = Mapping::new(file.as_fd(), slab.bytes).map_err(wrong)?;
        self.mapped.insert(slab.slab, Arc::new(mapping));
        Ok(())
    }

    pub(super) fn get(&self, slab: u64) -> Option<&Arc<Mapping>> {
        self.mapped.get(&slab)
    }

    /// Unmaps slabs, each as soon as nothing reads it.
    pub(super) fn forget(&mut self, slabs: &[u64]) {
        for id in slabs {
            let mapping = self.mapped.remove(id);
            self.leaving.push((*id, mapping.as_ref().map(Arc::downgrade).unwrap_or_default()));
        }
    }

    /// Those of them that are unmapped by now.
    pub(super) fn forgotten(&mut self) -> Vec<u64> {
        let gone = |(_, mapping): &mut (u64, Weak<Mapping>)| mapping.strong_count() == 0;
        self.leaving.extract_if(.., gone).map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    fn slab(slab: u64) -> (Slab, OwnedFd) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("slab", flags).expect("a memfd");
        ftruncate(&file, 4096).expect("it is writable");
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::FUTURE_WRITE).expect("sealed");
        (Slab { slab, bytes: 4096 }, file)
    }

    #[test]
    fn a_slab_that_is_read_is_forgotten_later() {
        let mut slabs = Slabs::default();
        for id in [1, 2] {
            let (slab, file) = slab(id);
            slabs.map(&slab, file).expect("it is sealed");
        }
        let read = Arc::clone(slabs.get(2).expect("it is mapped"));
        // The daemon may ask for what it never sent: it is not mapped.
        slabs.forget(&[1, 2, 3]);
        assert!(slabs.get(1).is_none() && slabs.get(2).is_none());
        assert_eq!(slabs.forgotten(), [1, 3]);
        // Sent again meanwhile, it is another mapping.
        let (again, file) = slab(2);
        slabs.map(&again, file).expect("it is sealed");
        assert!(slabs.forgotten().is_empty());
        drop(read);
        assert_eq!(slabs.forgotten(), [2]);
        assert!(slabs.get(2).is_some());
    }
}
