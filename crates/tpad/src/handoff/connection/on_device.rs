//! Answers to calls for blocks on a device.

use tpad_engine::{DeviceAcquired, Generation, Memory};

use super::calls::counts;
use super::{Connection, End};
use crate::handoff::answer;

impl Connection {
    /// Answers a call; slabs that are new to the worker go along.
    pub(super) fn finish_on_device(
        &mut self,
        call: u64,
        generation: &Generation,
        acquired: &DeviceAcquired,
    ) -> Result<(), End> {
        let mut answer = match answer::acquired_on_device(call, generation, acquired) {
            Ok(answer) => answer,
            Err(failure) => {
                self.let_go(acquired.iter().flatten().map(|leased| leased.lease));
                return self.fail(call, failure);
            }
        };
        let mut descriptors = Vec::new();
        for leased in acquired.iter().flatten() {
            let block = &leased.block;
            match self.device_slabs.send(leased.place.slab, || block.shared_slab()) {
                Ok(None) => {}
                Ok(Some((slab, descriptor))) => {
                    answer.slabs.push(slab);
                    descriptors.push(descriptor);
                }
                // Unlike host memory it is the driver's to refuse, and the worker can do
                // without: what was shared so far is sent again with its next lease.
                Err(error) => {
                    let slabs: Vec<u64> = answer.slabs.iter().map(|slab| slab.slab).collect();
                    self.device_slabs.take_back(&slabs);
                    self.let_go(acquired.iter().flatten().map(|leased| leased.lease));
                    return self.fail(call, answer::no_memory_of_a_device(&error));
                }
            }
        }
        // They are all on one.
        let device = acquired.iter().flatten().map(|leased| leased.place.device).next();
        let memory = device.map_or(Memory::Host, Memory::Device);
        self.answer(answer, descriptors, generation, memory, counts(acquired))
    }
}
