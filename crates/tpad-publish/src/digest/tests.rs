use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_manifest::{BlockId, IMAGE_ALIGN_BYTES};
use tpad_store::{BlockFetch, CacheClass, FetchPart, Origin, OriginError};

use super::{Digester, Ended};
use crate::Silent;

const OBJECT_BYTES: u64 = 300_000;

/// Objects whose bytes follow from their place; the last one is gone.
struct Made;

fn byte(object: &str, offset: u64) -> u8 {
    let mixed = (offset ^ u64::from(object.as_bytes()[0])).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_be_bytes()[0]
}

#[async_trait]
impl Origin for Made {
    fn url(&self) -> &'static str {
        "made"
    }

    async fn read_range(
        &self,
        object: &str,
        offset: u64,
        into: &mut [u8],
        _deadline: Instant,
    ) -> Result<(), OriginError> {
        let needed = offset + into.len() as u64;
        if object == "gone" {
            return Err(OriginError::NotFound { object: object.to_owned() });
        }
        if needed > OBJECT_BYTES {
            let object = object.to_owned();
            return Err(OriginError::Truncated { object, bytes: OBJECT_BYTES, needed });
        }
        for (n, into) in (offset..).zip(into) {
            *into = byte(object, n);
        }
        Ok(())
    }
}

/// The image's digest, the slow way; `None` when it cannot be read.
fn expected(image: &BlockFetch) -> Option<BlockId> {
    let mut bytes = vec![0; usize::try_from(image.bytes).expect("small")];
    for part in &image.parts {
        if &*part.object == "gone" || part.offset + part.bytes > OBJECT_BYTES {
            return None;
        }
        for n in 0..part.bytes {
            let at = usize::try_from(part.at + n).expect("small");
            bytes[at] = byte(&part.object, part.offset + n);
        }
    }
    Some(BlockId::of(&bytes))
}

fn image(parts: Vec<(&'static str, u64, u64)>) -> BlockFetch {
    let mut at = 0u64;
    let mut placed = Vec::new();
    for (object, offset, bytes) in parts {
        let object: Arc<str> = object.into();
        placed.push(FetchPart { object, offset, bytes, at });
        at = (at + bytes).next_multiple_of(IMAGE_ALIGN_BYTES);
    }
    let id = BlockId::from_bytes([0; 32]);
    BlockFetch { id, bytes: at, parts: placed, class: CacheClass::from("test") }
}

fn images() -> impl Strategy<Value = Vec<BlockFetch>> {
    // Near each other, far apart, on top of each other, and now and then
    // beyond the end or in an object that is gone.
    let object = prop_oneof![20 => Just("a"), 20 => Just("b"), 1 => Just("gone")];
    let offset = prop_oneof![0u64..2_000, 0..OBJECT_BYTES];
    let bytes = prop_oneof![1u64..600, 1u64..70_000];
    let parts = prop::collection::vec((object, offset, bytes), 0..6);
    prop::collection::vec(parts.prop_map(image), 0..12)
}

fn digest(images: &[BlockFetch]) -> BTreeMap<usize, Option<BlockId>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let stop = CancellationToken::new();
    let digester = Digester { origin: &Made, progress: &Silent, stop: &stop };
    let mut results = BTreeMap::new();
    let receive = |digested: Vec<super::Digested>| {
        for (n, result) in digested {
            assert!(results.insert(n, result.ok()).is_none(), "{n} was reported twice");
        }
        ControlFlow::Continue(())
    };
    assert_eq!(runtime.block_on(digester.run(images, receive)), Ended::All);
    results
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_image_is_digested_once_and_alone_in_its_failure(images in images()) {
        let expected: BTreeMap<usize, Option<BlockId>> =
            images.iter().map(expected).enumerate().collect();
        prop_assert_eq!(digest(&images), expected);
    }
}

/// A store that no longer answers, and how often it was asked.
#[derive(Default)]
struct Silenced(std::sync::atomic::AtomicUsize);

#[async_trait]
impl Origin for Silenced {
    fn url(&self) -> &'static str {
        "silenced"
    }

    async fn read_range(
        &self,
        object: &str,
        _offset: u64,
        _into: &mut [u8],
        _deadline: Instant,
    ) -> Result<(), OriginError> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let source = Arc::new(std::io::Error::other("no answer"));
        Err(OriginError::Io { object: object.to_owned(), source })
    }
}

/// Each request to such a store takes its retries and timeouts: asking for
/// every image of a batch alone would take hours to say what is known.
#[test]
fn a_store_that_fails_is_not_asked_for_every_image() {
    let images: Vec<BlockFetch> = (0..1000).map(|n| image(vec![("a", n, 9)])).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let stop = CancellationToken::new();
    let origin = Silenced::default();
    let digester = Digester { origin: &origin, progress: &Silent, stop: &stop };
    let mut failed = 0;
    let receive = |digested: Vec<super::Digested>| {
        failed += digested.iter().filter(|(_, result)| result.is_err()).count();
        ControlFlow::Continue(())
    };
    assert_eq!(runtime.block_on(digester.run(&images, receive)), Ended::All);
    assert_eq!(failed, images.len());
    let asked = origin.0.into_inner();
    assert!(asked < 10, "{asked} requests");
}

#[test]
fn who_wants_no_more_gets_no_more() {
    let images: Vec<BlockFetch> = (0..2000).map(|n| image(vec![("a", n, 9)])).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let stop = CancellationToken::new();
    let digester = Digester { origin: &Made, progress: &Silent, stop: &stop };
    let mut calls = 0;
    let receive = |_| {
        calls += 1;
        ControlFlow::Break(())
    };
    assert_eq!(runtime.block_on(digester.run(&images, receive)), Ended::Stopped);
    assert_eq!(calls, 1);
    stop.cancel();
    let receive = |_| ControlFlow::Continue(());
    assert_eq!(runtime.block_on(digester.run(&images, receive)), Ended::Cancelled);
}
