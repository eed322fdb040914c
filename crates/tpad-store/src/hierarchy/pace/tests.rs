//! The pace against made-up stores, on a clock that stands still until something
//! happens.

use std::sync::Arc;
use std::sync::Mutex;

use tokio::task::JoinSet;

use super::*;

/// A store: what one range takes when it is alone, what all of them get together,
/// and how many at once are too many.
#[derive(Clone, Copy)]
struct Store {
    latency: Duration,
    bytes_per_second: f64,
    most: u64,
}

const MIB: u64 = 1 << 20;

/// Has readers that always want more ask the store for as long as this, and returns
/// how many at once were asked for at the end of each second.
async fn run(pace: Pace, stores: &[(u64, Store)]) -> Vec<u64> {
    let pace = Arc::new(Mutex::new(pace));
    let mut seconds = Vec::new();
    // When the store's link is free again.
    let mut link = Instant::now();
    let mut ranges: JoinSet<(Instant, bool)> = JoinSet::new();
    for (lasts, store) in stores {
        for _ in 0..*lasts {
            let until = Instant::now() + Duration::from_secs(1);
            while Instant::now() < until {
                while (ranges.len() as u64) < pace.lock().expect("held").places() {
                    let began = Instant::now();
                    let refused = ranges.len() as u64 >= store.most;
                    let transfer =
                        Duration::from_secs_f64(8.0 * MIB as f64 / store.bytes_per_second);
                    link = link.max(began);
                    if !refused {
                        link += transfer;
                    }
                    let arrives = link.max(began + store.latency);
                    let arrives = if refused { began + Duration::from_millis(5) } else { arrives };
                    ranges.spawn(async move {
                        tokio::time::sleep_until(arrives).await;
                        (began, refused)
                    });
                }
                let (began, setback) = ranges.join_next().await.expect("some").expect("no panic");
                let bytes = if setback { 0 } else { 8 * MIB };
                let mut pace = pace.lock().expect("held");
                pace.note(Ended { began, bytes, setback, full: true });
                assert!((2..=64).contains(&pace.places()), "{}", pace.places());
            }
            seconds.push(pace.lock().expect("held").places());
        }
    }
    seconds
}

fn store(latency_ms: u64, mb_per_second: f64) -> Store {
    let latency = Duration::from_millis(latency_ms);
    Store { latency, bytes_per_second: mb_per_second * 1e6, most: u64::MAX }
}

#[tokio::test(start_paused = true)]
async fn a_store_far_away_is_asked_for_as_much_as_it_gives() {
    // 8 MiB in 200 ms each: 24 at once fill 1 GB/s.
    let seconds = run(Pace::new(2, 64), &[(20, store(200, 1000.0))]).await;
    assert!(seconds[4..].iter().all(|places| (18..=40).contains(places)), "{seconds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_full_with_few_is_asked_for_few() {
    let seconds = run(Pace::new(2, 64), &[(20, store(5, 300.0))]).await;
    assert!(seconds[2..].iter().all(|places| *places <= 4), "{seconds:?}");
}

#[tokio::test(start_paused = true)]
async fn the_bounds_hold_where_nothing_is_ever_enough() {
    let seconds = run(Pace::new(2, 64), &[(20, store(2000, 1e6))]).await;
    assert_eq!(seconds.last(), Some(&64), "{seconds:?}");
    let seconds = run(Pace::new(2, 2), &[(3, store(2000, 1e6))]).await;
    assert_eq!(seconds, [2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_says_that_it_is_too_much_is_asked_for_half() {
    let quota = Store { most: 12, ..store(200, 1e6) };
    let seconds = run(Pace::new(2, 64), &[(30, quota)]).await;
    assert!(seconds[3..].iter().all(|places| (4..=13).contains(places)), "{seconds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_becomes_faster_or_slower_is_followed() {
    let (near, far) = (store(5, 300.0), store(200, 1000.0));
    let seconds = run(Pace::new(2, 64), &[(10, near), (120, far)]).await;
    assert!(seconds[9] <= 4, "{seconds:?}");
    assert!(seconds[129] >= 16, "{seconds:?}");
    let refusing = Store { most: 4, ..far };
    let seconds = run(Pace::new(2, 64), &[(10, far), (5, refusing)]).await;
    assert!(seconds[9] >= 16 && seconds[12] <= 5, "{seconds:?}");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_changes_nothing() {
    let mut pace = Pace::new(4, 64);
    for _ in 0..1000 {
        let began = Instant::now();
        tokio::time::advance(Duration::from_millis(20)).await;
        assert!(!pace.note(Ended { began, bytes: MIB, setback: false, full: false }));
    }
    assert_eq!(pace.places(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_was_asked_before_a_setback_does_not_count_twice() {
    let mut pace = Pace::new(4, 64);
    let began = Instant::now();
    tokio::time::advance(Duration::from_millis(1)).await;
    pace.change(32);
    let ended = |began| Ended { began, bytes: 0, setback: true, full: true };
    tokio::time::advance(Duration::from_millis(1)).await;
    let asked: Vec<Instant> = vec![Instant::now(); 10];
    assert!(!pace.note(ended(began)));
    tokio::time::advance(Duration::from_millis(20)).await;
    let changes = asked.into_iter().filter(|began| pace.note(ended(*began))).count();
    assert_eq!((changes, pace.places()), (1, 16));
}
