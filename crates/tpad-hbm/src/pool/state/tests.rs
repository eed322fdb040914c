//! What a capacity holds, without memory.

use std::os::fd::OwnedFd;

use tpad_cuda::{CudaError, Memory, Slab};

use super::*;

const MIB: u64 = 1 << 20;
const GRANULARITY: u64 = 2 * MIB;

/// Memory that is only counted.
#[derive(Debug)]
struct Counted(u64);

impl Memory for Counted {
    fn bytes(&self) -> u64 {
        self.0
    }

    fn address(&self) -> u64 {
        0
    }

    fn read(&self, _offset: u64, _into: &mut [u8]) -> Result<(), CudaError> {
        Err(CudaError::Ended)
    }

    fn write(&self, _offset: u64, _from: &[u8]) -> Result<(), CudaError> {
        Err(CudaError::Ended)
    }
}

impl Slab for Counted {
    fn descriptor(&self) -> Result<OwnedFd, CudaError> {
        let nothing = std::fs::File::open("/dev/null");
        Ok(nothing.expect("it is always there").into())
    }
}

/// Takes slots until there are none; how many.
fn fill(state: &mut State, slot_bytes: u64) -> u64 {
    let (mut taken, mut slabs) = (0, 0);
    loop {
        match state.plan(slot_bytes, Instant::now()) {
            Plan::Take(_, _) => taken += 1,
            Plan::Make { bytes, retired } => {
                assert!(retired.is_empty(), "nothing is empty");
                assert_eq!(bytes % GRANULARITY, 0);
                slabs += 1;
                let memory = Arc::new(Counted(bytes));
                let descriptor = memory.descriptor().expect("a descriptor");
                state.add(Arc::new(PoolSlab { id: slabs, slot_bytes, memory, descriptor }));
            }
            Plan::Short => return taken,
        }
    }
}

#[test]
fn a_capacity_holds_nearly_what_it_promises_whatever_the_slots() {
    // Slabs of up to 128 MiB; the last capacity is no multiple of the granularity.
    for capacity in [8192 * MIB, 8192 * MIB + 4096 * 3] {
        for slot_bytes in [
            64 << 10,
            MIB + MIB / 16,
            3 * MIB,
            27 * MIB,
            42 * MIB + MIB / 2,
            66 * MIB,
            100 * MIB,
            336 * MIB,
        ] {
            let mut state = State::new(capacity, GRANULARITY);
            let held = fill(&mut state, slot_bytes) * slot_bytes;
            assert_eq!(state.held(), held);
            assert!(state.mapped() <= capacity, "{slot_bytes}: {}", state.mapped());
            // The last slot may not fit, and slabs begin small and are rounded up.
            let least = (capacity - slot_bytes) / 100 * 97;
            assert!(held >= least, "slots of {slot_bytes}: {held} of {capacity} bytes");
        }
    }
}

#[test]
fn a_slab_that_is_refused_is_asked_for_with_half_the_slots() {
    let state = State::new(8192 * MIB, GRANULARITY);
    let asked = |slot_bytes, bytes| {
        let smaller = |bytes: &u64| state.smaller(slot_bytes, *bytes);
        std::iter::successors(Some(bytes), smaller).map(|bytes| bytes / MIB).collect::<Vec<_>>()
    };
    assert_eq!(asked(20 * MIB, 120 * MIB), [120, 60, 20]);
    assert_eq!(asked(3 * MIB, 120 * MIB), [120, 60, 30, 16, 6, 4]);
    assert_eq!(asked(66 * MIB, 66 * MIB), [66]);
    // A unit of the granularity holds many of these.
    assert_eq!(asked(4096, 8 * MIB), [8, 4, 2]);
}
