//! What the daemon grants, made into blocks that are held.

use std::sync::Arc;

use tpad_proto::handoff::v1 as wire;

use super::{Task, framed, refusal};
use crate::handoff::Acquired;
use crate::handoff::device::{Arrival, DeviceSlab};
use crate::handoff::held::{Guard, HeldBlock};
use crate::handoff::link::{Answer, Call, Lease, Link};
use crate::{Error, Gpu, PlacedBlock};

/// What leases begin at multiples of: tensors are on 256 bytes of their image, and their
/// readers count on the same in memory.
const PAGE_BYTES: usize = 4096;

/// A block where it lies, as the daemon says: nothing of it is compared with the slab.
pub(in crate::handoff) struct Granted {
    /// First: whatever is wrong with the rest, it is given back.
    pub(in crate::handoff) lease: Lease,
    pub(in crate::handoff) slab: u64,
    /// Of the image in the slab.
    pub(in crate::handoff) start: usize,
    /// From there.
    pub(in crate::handoff) block: Arc<PlacedBlock>,
    ordinal: Option<u32>,
}

impl Task {
    /// An answer. Whatever is wrong with it, its leases are given back.
    pub(super) fn acquired(&mut self, acquired: wire::Acquired) -> Result<(), Error> {
        let wire::Acquired { call, revision, generation, outcomes, failure, slabs, directory } =
            acquired;
        let cells = directory.as_ref().is_some_and(|directory| directory.cells);
        let named = slabs.len() + usize::from(cells) + 2 * usize::from(directory.is_some());
        let mut descriptors = self.reader.descriptors(named).map_err(framed)?.into_iter();
        for (slab, descriptor) in slabs.into_iter().zip(&mut descriptors) {
            if slab.device.is_empty() {
                self.slabs.map(&slab, descriptor)?;
            } else {
                self.device_slabs.add(slab, descriptor);
            }
        }
        let Some((Call { link, answer, .. }, model)) = self.calls.remove(&call) else {
            return Err(Error::protocol("handoff", format!("an answer to no call: {call}")));
        };
        // Nobody holds the connection, which is closed: with it the leases are over.
        let Some(link) = link.upgrade() else { return Ok(()) };
        if directory.is_some() {
            let cells = if cells { descriptors.next() } else { None };
            if let (Some(directory), Some(uses)) = (descriptors.next(), descriptors.next()) {
                let of = (revision, generation);
                self.directories.watch(answer.device(), &model, of, cells, [directory, uses]);
            }
        }
        if let Some(failure) = failure {
            answer.fail(Error::Refused(Box::new(refusal(Some(failure)))));
            return Ok(());
        }
        let granted: Vec<Result<Granted, Error>> =
            outcomes.into_iter().map(|outcome| Granted::new(outcome, &link)).collect();
        let known = granted.iter().flatten();
        let known = known.filter_map(|it| Some((it.ordinal?, Arc::clone(&it.block))));
        self.directories.learn(answer.device(), &model, generation, known.collect());
        let granted = granted.into_iter();
        match answer {
            Answer::Host(answer) => {
                let blocks = granted.map(|granted| self.block(granted?)).collect();
                // Who asked may have gone: then the blocks are dropped here.
                let _ = answer.send(Ok(Acquired { revision, generation, blocks }));
            }
            Answer::Device(gpu, answer) => {
                let blocks = granted.map(|granted| self.placed(granted?, &gpu)).collect();
                let arrival = Arrival::new(gpu, answer, Acquired { revision, generation, blocks });
                if arrival.is_mapped() {
                    arrival.deliver();
                } else {
                    self.mapping.spawn_blocking(move || arrival.deliver());
                }
            }
        }
        Ok(())
    }

    /// A block of host memory.
    fn block(&self, granted: Granted) -> Result<HeldBlock, Error> {
        let Granted { lease, slab, start, block, .. } = granted;
        let slab = self.slabs.get(slab).ok_or_else(|| wrong("a lease in no slab"))?;
        let guard = Guard::Lease(lease, self.directories.count_lease(slab.slot_bytes()));
        let medium = block.medium;
        HeldBlock::new(block, start, slab, medium, guard)
            .ok_or_else(|| wrong("a lease beyond the end of its slab"))
    }

    /// A block of a device's memory, which may have to be mapped first.
    fn placed(&self, granted: Granted, gpu: &Gpu) -> Result<(Granted, Arc<DeviceSlab>), Error> {
        let slab = self.device_slabs.get(granted.slab);
        let slab = slab.ok_or_else(|| wrong("a lease in no slab of a device"))?;
        if slab.device() != gpu.uuid() {
            let what = format!("a lease on {}, asked for on {}", slab.device(), gpu.uuid());
            return Err(wrong(&what));
        }
        Ok((granted, slab))
    }
}

impl Granted {
    fn new(outcome: wire::Outcome, link: &Arc<Link>) -> Result<Self, Error> {
        use wire::outcome::Outcome;
        let lease = match outcome.outcome.ok_or_else(|| wrong("an outcome of no known kind"))? {
            Outcome::Lease(lease) => lease,
            Outcome::Failure(failure) => {
                return Err(Error::Refused(Box::new(refusal(Some(failure)))));
            }
        };
        let wire::Lease { lease, slab, offset, block, ordinal } = lease;
        // First: from here on it is given back.
        let lease = Lease::new(lease, link);
        let block = block.ok_or_else(|| wrong("a lease of no block"))?;
        let start = usize::try_from(offset).map_err(|_| wrong("a lease beyond memory"))?;
        if start % PAGE_BYTES != 0 {
            return Err(wrong("a lease that begins within a page"));
        }
        let block = Arc::new(crate::stream::placed_block(block, 0)?);
        Ok(Self { lease, slab, start, block, ordinal })
    }
}

fn wrong(what: &str) -> Error {
    Error::protocol("handoff", what)
}
