//! The seam, on the stand-in: memory, copies, completion, faults.

use std::os::fd::AsFd as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use tpad_cuda::fault::{Faults, Faulty, checksum};
use tpad_cuda::{Copier, CudaErrorKind, Device, DeviceName, Driver, DriverKind, HostCopy, StandIn};

const MIB: u64 = 1 << 20;

fn stand_in() -> (tempfile::TempDir, Arc<dyn Driver>) {
    let directory = tempfile::tempdir().expect("a directory");
    let driver = StandIn::on(directory.path(), 2, 8 * MIB);
    (directory, driver)
}

fn open(driver: &Arc<dyn Driver>, index: u32) -> Arc<dyn Device> {
    driver.open(&DeviceName::Index(index)).expect("there are two")
}

/// Copies, and waits for the outcome.
fn copy(copier: &Copier, copy: HostCopy) -> Result<(), tpad_cuda::CudaError> {
    let (over, outcome) = mpsc::sync_channel(1);
    copier.copy(copy, move |result| over.send(result).expect("it is awaited"));
    outcome.recv().expect("a copy ends")
}

#[test]
fn a_stand_in_says_that_it_is_none_of_the_real_ones() {
    let (_directory, driver) = stand_in();
    assert_eq!(driver.kind(), DriverKind::StandIn);
    assert!(driver.version().contains("no GPU"));
    for facts in driver.devices().expect("it knows them") {
        assert!(facts.name.contains("no GPU"), "{facts:?}");
        let again = driver.open(&facts.uuid.into()).expect("by its identity");
        assert_eq!(*again.facts(), facts);
    }
    assert!(driver.open(&DeviceName::Index(2)).is_err());
}

#[test]
fn memory_is_bounded_shared_and_given_back_with_its_last_holder() {
    let (_directory, driver) = stand_in();
    let (device, other) = (open(&driver, 0), open(&driver, 1));
    let free = |device: &Arc<dyn Device>| device.memory().expect("it says").free_bytes;
    let slab = device.create(5 * MIB).expect("there is room");
    assert_eq!((slab.bytes(), free(&device), free(&other)), (6 * MIB, 2 * MIB, 8 * MIB));
    let refused = device.create(3 * MIB).expect_err("there is not");
    assert_eq!(refused.kind(), CudaErrorKind::OutOfMemory);

    slab.write(MIB, b"tpad").expect("it is writable");
    let descriptor = slab.descriptor().expect("it is there");
    assert!(device.import(descriptor.as_fd(), 8 * MIB).is_err(), "it is not so large");
    let imported = device.import(descriptor.as_fd(), 6 * MIB).expect("it is memory");
    drop(descriptor);
    drop(slab);
    let mut there = [0; 4];
    imported.read(MIB, &mut there).expect("it outlives who made it");
    assert_eq!(&there, b"tpad");
    assert!(imported.write(MIB, b"else").is_err(), "it is mapped to be read");
    assert!(imported.read(6 * MIB - 3, &mut there).is_err(), "beyond its end");
    assert_eq!(free(&device), 2 * MIB, "it is in use as long as it is mapped");
    drop(imported);
    assert_eq!(free(&device), 8 * MIB);
}

#[test]
fn copies_end_in_order_and_what_was_submitted_completes() {
    let (_directory, driver) = stand_in();
    let device = open(&driver, 0);
    let slab = device.create(2 * MIB).expect("there is room");
    let copier = Copier::new(&device, 2).expect("threads");
    let from = Bytes::from(vec![7; 1 << 20]);
    let to = || HostCopy { from: from.clone(), to: slab.clone(), offset: MIB };
    copy(&copier, to()).expect("it fits");
    let outside = HostCopy { offset: MIB + 1, ..to() };
    assert!(copy(&copier, outside).is_err());
    let mut there = vec![0; 1 << 20];
    slab.read(MIB, &mut there).expect("it lies there");
    assert_eq!(there, from);

    let memory: Arc<dyn tpad_cuda::Memory> = slab.clone();
    let late = device.read_late(&memory, MIB, MIB, Duration::from_millis(50)).expect("it starts");
    let submitted = device.submitted().expect("it says");
    assert!(!submitted.is_done().expect("it runs"));
    submitted.wait().expect("it ends");
    assert!(late.is_done().expect("it ran"));
    assert_eq!(late.checksum().expect("it read"), checksum(&there));
}

#[test]
fn a_context_that_dies_refuses_everything_from_then_on() {
    let (_directory, driver) = stand_in();
    let faults = Arc::<Faults>::default();
    let device = open(&Faulty::over(driver, &faults), 0);
    let slab = device.create(2 * MIB).expect("there is room");
    let copier = Copier::new(&device, 1).expect("threads");
    let to = || HostCopy { from: Bytes::from_static(b"tpad"), to: slab.clone(), offset: 0 };
    faults.copies_to_death.store(2, Ordering::SeqCst);
    copy(&copier, to()).expect("the first goes well");
    assert!(copy(&copier, to()).expect_err("the second does not").is_sticky());
    assert!(copy(&copier, to()).expect_err("nor any other").is_sticky());
    assert!(device.create(1).expect_err("nor anything else").is_sticky());
    assert_eq!(faults.fired(), 3);
}

#[test]
fn long_copies_are_made_one_after_the_other_and_short_ones_pass_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let driver = StandIn::on(directory.path(), 1, 256 * MIB);
    let device = open(&driver, 0);
    let slab = device.create(200 * MIB).expect("there is room");
    let copier = Copier::new(&device, 2).expect("threads");
    let (over, ended) = mpsc::channel();
    // Made before: the first is to be under way when the last is submitted.
    let sources = [128 << 20, 32 << 20, 1].map(|bytes| Bytes::from(vec![7; bytes]));
    for ((n, from), offset) in sources.into_iter().enumerate().zip([0, 130 * MIB, 170 * MIB]) {
        let (copy, over) = (HostCopy { from, to: slab.clone(), offset }, over.clone());
        copier.copy(copy, move |result| over.send(result.map(|()| n)).expect("it is awaited"));
    }
    let order: Vec<usize> = ended.iter().take(3).map(|ended| ended.expect("it fits")).collect();
    let at = |n| order.iter().position(|ended| *ended == n);
    assert!(at(0) < at(1), "side by side the shorter one would be first: {order:?}");
    assert!(at(2) < at(1), "it is on the other stream: {order:?}");
}
