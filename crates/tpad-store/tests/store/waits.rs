//! Waiting: deadlines, bounds, urgency, and what is left when callers leave.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use futures::future::join_all;
use tokio::time::Instant;
use tpad_store::fault::{Fault, Faults, FaultyOrigin};
use tpad_store::{
    ErrorKind, FetchTuning, Hierarchy, HierarchyConfig, Medium, Origin, OriginError, ReadError,
    ReadOptions, StoreError, StoreMetrics, Urgency,
};

use crate::model::{MIB, Model, check, config, hierarchy, read, within};

#[tokio::test(start_paused = true)]
async fn each_caller_has_its_own_deadline() {
    let model = Model::new(10, "a", [5000]);
    let delay = Duration::from_secs(10);
    let faults = Faults::new(1, [(Fault::Slow(delay), 1.0)]);
    let origin: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(model.origin(), faults));
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let fetch = &model.blocks[0].fetch;
    let started = Instant::now();
    let short = hierarchy.read(&origin, fetch, within(Duration::from_millis(100)));
    let long = hierarchy.read(&origin, fetch, within(Duration::from_secs(60)));
    let (short, long) = tokio::join!(async { (short.await, started.elapsed()) }, async {
        (long.await, started.elapsed())
    },);
    assert_eq!(short.0.expect_err("late").kind(), ErrorKind::DeadlineExceeded);
    assert!(short.1 < Duration::from_secs(1));
    assert_eq!(long.0.expect("in time").bytes[..], model.blocks[0].image[..]);
    assert!(long.1 >= delay);
}

#[tokio::test]
async fn a_fill_that_nobody_waits_for_is_kept() {
    let model = Model::new(11, "a", [5000]);
    let origin = model.origin();
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let mut read = Box::pin(read(&hierarchy, &origin, &model.blocks[0]));
    assert!((&mut read).now_or_never().is_none());
    drop(read);
    assert_eq!(hierarchy.status().fills, 1);
    while hierarchy.status().fills > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(hierarchy.resident(&model.blocks[0].fetch.id), Some(Medium::Dram));
}

#[tokio::test(start_paused = true)]
async fn a_fill_takes_no_longer_than_any_may() {
    let model = Model::new(12, "a", [5000]);
    let faults = Faults::new(1, [(Fault::Hanging, 1.0)]);
    let origin: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(model.origin(), faults));
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let options = within(Duration::from_secs(100_000));
    let error = hierarchy.read(&origin, &model.blocks[0].fetch, options).await;
    let error = error.expect_err("hangs");
    assert!(matches!(error, ReadError::Slow { .. }), "{error}");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(hierarchy.status().arena.held, 0);
}

/// An origin under another URL.
struct Elsewhere(Arc<dyn Origin>);

#[async_trait]
impl Origin for Elsewhere {
    fn url(&self) -> &str {
        "elsewhere://"
    }

    async fn read_range(
        &self,
        object: &str,
        offset: u64,
        into: &mut [u8],
        deadline: Instant,
    ) -> Result<(), OriginError> {
        self.0.read_range(object, offset, into, deadline).await
    }
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_hangs_delays_no_read_of_another() {
    let (bad, good) = (Model::new(21, "a", vec![5000; 100]), Model::new(22, "b", [5000]));
    let faults = Faults::new(1, [(Fault::Hanging, 1.0)]);
    let hangs: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(bad.origin(), Arc::clone(&faults)));
    let works: Arc<dyn Origin> = Arc::new(Elsewhere(good.origin()));
    let hierarchy = hierarchy(64 * MIB, vec![]);
    let hanging = bad.blocks.iter().map(|block| {
        hierarchy.read(&hangs, &block.fetch, within(Duration::from_secs(1000))).boxed()
    });
    let mut hanging: Vec<_> = hanging.collect();
    // As many as it has places, and more wait for one.
    let places = FetchTuning::default().least_ranges;
    while faults.fired(Fault::Hanging) < places {
        for read in &mut hanging {
            assert!(read.now_or_never().is_none());
        }
        tokio::task::yield_now().await;
    }
    let read = hierarchy.read(&works, &good.blocks[0].fetch, within(Duration::from_secs(1))).await;
    assert_eq!(read.expect("its own origin works").bytes[..], good.blocks[0].image[..]);
}

#[tokio::test]
async fn memory_that_is_read_is_waited_for_until_the_deadline() {
    let model = Model::new(13, "a", vec![200_000; 8]);
    let origin = model.origin();
    let hierarchy = hierarchy(MIB, vec![]);
    let mut readers = Vec::new();
    let refused = loop {
        let block = &model.blocks[readers.len()];
        let read = hierarchy.read(&origin, &block.fetch, within(Duration::from_millis(300))).await;
        match read {
            Ok(served) => readers.push(served.bytes),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ReadError::NoRoom { capacity: MIB, .. }), "{refused}");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    assert!(readers.len() >= 3);
    for (reader, block) in readers.iter().zip(&model.blocks) {
        assert_eq!(reader[..], block.image[..], "nothing is written over");
    }
    let prefetch = ReadOptions { urgency: Urgency::Prefetch, ..within(Duration::from_secs(60)) };
    let refused = hierarchy.read(&origin, &model.blocks[7].fetch, prefetch).await;
    let refused = refused.expect_err("a prefetch does not wait");
    assert_eq!(refused.kind(), ErrorKind::ResourceExhausted);
    let last = &model.blocks[7];
    let (served, ()) = tokio::join!(read(&hierarchy, &origin, last), async {
        tokio::task::yield_now().await;
        readers.clear();
    });
    assert_eq!(served.expect("served").bytes[..], last.image[..]);
}

#[tokio::test(start_paused = true)]
async fn over_its_bounds_it_refuses_early() {
    let model = Model::new(14, "a", vec![5000; 10]);
    let faults = Faults::new(1, [(Fault::Slow(Duration::from_secs(5)), 1.0)]);
    let origin: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(model.origin(), faults));
    let mut config = config(16 * MIB);
    config.fetch.max_fills = 4;
    let hierarchy = Hierarchy::new(config.clone(), vec![], StoreMetrics::default());
    let hierarchy = hierarchy.expect("sound");
    let reads = model.blocks.iter().map(|block| read(&hierarchy, &origin, block));
    let results = join_all(reads).await;
    assert!(results[..4].iter().all(Result::is_ok));
    for refused in &results[4..] {
        let error = refused.as_ref().expect_err("one too many");
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error}");
    }
    config.fetch.max_waiting = 3;
    let hierarchy = Hierarchy::new(config, vec![], StoreMetrics::default()).expect("sound");
    let reads = (0..10).map(|_| read(&hierarchy, &origin, &model.blocks[0]));
    let results = join_all(reads).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
    assert_eq!(hierarchy.status().reads_waiting, 0);
}

#[tokio::test]
async fn a_prefetch_that_is_demanded_becomes_urgent() {
    let model = Model::new(15, "a", vec![200_000; 8]);
    let origin = model.origin();
    let hierarchy = hierarchy(MIB, vec![]);
    let held = hierarchy.dram().arena().slot(900_000).expect("mapped").expect("room");
    let block = &model.blocks[0];
    let prefetch = ReadOptions { urgency: Urgency::Prefetch, ..within(Duration::from_secs(60)) };
    let (prefetch, demand, ()) = tokio::join!(
        hierarchy.read(&origin, &block.fetch, prefetch),
        read(&hierarchy, &origin, block),
        async {
            tokio::task::yield_now().await;
            drop(held);
        }
    );
    assert_eq!(demand.expect("waited for").bytes[..], block.image[..]);
    assert!(prefetch.is_ok(), "it is the same fill");
}

#[tokio::test]
async fn after_shutdown_nothing_is_filled() {
    let model = Model::new(16, "a", [5000, 6000]);
    let faults = Faults::new(1, [(Fault::Hanging, 1.0)]);
    let hanging: Arc<dyn Origin> = Arc::new(FaultyOrigin::new(model.origin(), faults));
    let hierarchy = hierarchy(16 * MIB, vec![]);
    check(&hierarchy, &model.origin(), &model.blocks[0]).await;
    let (hung, ()) = tokio::join!(read(&hierarchy, &hanging, &model.blocks[1]), async {
        tokio::task::yield_now().await;
        hierarchy.shutdown().await;
    });
    assert!(matches!(hung, Err(ReadError::Stopping)));
    let refused = read(&hierarchy, &model.origin(), &model.blocks[1]).await;
    assert!(matches!(refused, Err(ReadError::Stopping)));
    assert_eq!(check(&hierarchy, &model.origin(), &model.blocks[0]).await, Medium::Dram);
}

#[test]
fn bounds_that_make_no_sense_are_refused() {
    let start = |change: fn(&mut HierarchyConfig)| {
        let mut config = config(MIB);
        change(&mut config);
        Hierarchy::new(config, vec![], StoreMetrics::default())
    };
    for error in [
        start(|config| config.dram.capacity_bytes = 0),
        start(|config| config.fetch.part_bytes = 0),
        start(|config| config.fetch.least_ranges = 0),
        start(|config| config.fetch.most_ranges = 0),
        start(|config| config.fetch.max_fills = 0),
    ] {
        assert!(matches!(error, Err(StoreError::Bound { value: 0, .. })), "{error:?}");
    }
    let error = start(|config| {
        config.dram.class_budgets.insert("a".into(), MIB + 1);
    });
    assert!(matches!(error, Err(StoreError::Budgets { .. })), "{error:?}");
}
