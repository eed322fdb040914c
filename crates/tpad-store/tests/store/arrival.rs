//! Images that arrive in pieces, in no order: the right ones are served and no other.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;
use tpad_manifest::BlockId;
use tpad_store::{
    BlockFetch, FetchPart, Hierarchy, Intake, Medium, ObjectOrigin, Origin, OriginError,
    OriginOptions, ReadError, StoreMetrics,
};

use crate::model::{MIB, config, hierarchy, metric, within};
use crate::server::{Manner, Server};

/// An object that comes in pieces, each after a while, one byte of it wrong.
struct Dripping {
    content: Bytes,
    seed: u64,
    wrong: Option<usize>,
}

#[async_trait]
impl Origin for Dripping {
    fn url(&self) -> &str {
        "dripping"
    }

    async fn read_range(
        &self,
        _object: &str,
        offset: u64,
        into: &mut [u8],
        _deadline: Instant,
    ) -> Result<(), OriginError> {
        let start = offset as usize;
        into.copy_from_slice(&self.content[start..start + into.len()]);
        if let Some(wrong) = self.wrong.and_then(|at| into.get_mut(at.checked_sub(start)?)) {
            *wrong ^= 1;
        }
        Ok(())
    }

    async fn read_into(
        &self,
        object: &str,
        offset: u64,
        into: &mut Intake,
        deadline: Instant,
    ) -> Result<(), OriginError> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ offset);
        let mut at = offset;
        while into.left() > 0 {
            let mut piece = vec![0; into.left().min(rng.random_range(1..400_000))];
            self.read_range(object, at, &mut piece, deadline).await?;
            for _ in 0..rng.random_range(0..20) {
                tokio::task::yield_now().await;
            }
            into.write_all(&piece).expect("room");
            at += piece.len() as u64;
        }
        Ok(())
    }
}

/// A block of three tensors, out of order and with gaps, and the object they are in.
fn scene() -> (Bytes, BlockFetch, Vec<u8>) {
    let mut content = vec![0; 6 << 20];
    ChaCha8Rng::seed_from_u64(1).fill(&mut content[..]);
    let part = |offset, bytes, at| FetchPart { object: "s".into(), offset, bytes, at };
    // The last two are collected beside the slot, being small and near each other.
    let parts = vec![
        part(3 * MIB + 5, 2_000_003, 0),
        part(1000, 1_500_000, 2_000_128),
        part(1_501_100, 300, 3_500_288),
        part(1_501_500, 70_000, 3_500_800),
    ];
    let mut image = vec![0; 3_570_944];
    for FetchPart { offset, bytes, at, .. } in &parts {
        let (offset, bytes, at) = (*offset as usize, *bytes as usize, *at as usize);
        image[at..at + bytes].copy_from_slice(&content[offset..offset + bytes]);
    }
    let bytes = image.len() as u64;
    let fetch = BlockFetch { id: BlockId::of(&image), bytes, parts, class: "a".into() };
    (content.into(), fetch, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_in_any_order_are_served_right_or_not_at_all() {
    let (content, fetch, image) = scene();
    let fetch = Arc::new(fetch);
    // In each tensor its ends, and where the image's spans of a MiB end.
    let ends = fetch.parts.iter().flat_map(|part| {
        let spans = (1..4)
            .map(|span| span * MIB)
            .filter(|end| part.at < *end && *end < part.at + part.bytes);
        let spans = spans.flat_map(move |end| [end - 1 - part.at, end - part.at]);
        let places = spans.chain([0, part.bytes - 1]);
        places.map(|place| (part.offset + place) as usize)
    });
    let ends: Vec<_> = ends.collect();
    assert_eq!(ends.len(), 14);
    for (seed, wrong) in (0..4)
        .map(|seed| (seed, None))
        .chain(ends.into_iter().enumerate().map(|(n, end)| (n as u64, Some(end))))
    {
        let mut config = config(64 * MIB);
        config.fetch.part_bytes = [8 * MIB, 500_000, 1_000_001][seed as usize % 3];
        let metrics = StoreMetrics::default();
        let hierarchy = Hierarchy::new(config, vec![], metrics.clone()).expect("sound");
        let origin: Arc<dyn Origin> = Arc::new(Dripping { content: content.clone(), seed, wrong });
        let read = hierarchy.read(&origin, &fetch, within(Duration::from_secs(60))).await;
        let failures = metric(&metrics, "tpad_verify_failures_total{level=\"object_store\"}");
        match (wrong, read) {
            (None, Ok(served)) => {
                assert!(served.bytes[..] == image[..], "seed {seed}");
                assert_eq!(failures, 0);
            }
            (Some(_), Err(ReadError::Digest { id, found, .. })) => {
                assert_eq!((id, failures), (fetch.id, 2));
                assert_ne!(found, id);
                assert_eq!(hierarchy.resident(&fetch.id), None::<Medium>);
                assert_eq!(hierarchy.status().arena.held, 0, "nothing is left of it");
            }
            (wrong, read) => panic!("seed {seed}, wrong {wrong:?}: {read:?}"),
        }
    }
}

#[tokio::test]
async fn what_came_before_a_connection_broke_is_not_asked_for_again() {
    let (content, mut fetch, _) = scene();
    let bytes = 3 * MIB;
    fetch.parts = vec![FetchPart { object: "shard".into(), offset: 77, bytes, at: 0 }];
    fetch.bytes = bytes;
    let image = &content[77..77 + bytes as usize];
    fetch.id = BlockId::of(image);
    let server = Server::start("root/shard", &content, Manner::Mends(2)).await;
    let options = OriginOptions { retries: 2, ..OriginOptions::default() };
    let origin = ObjectOrigin::open(&server.url("root"), &options).expect("opened");
    let origin: Arc<dyn Origin> = Arc::new(origin);
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let read = hierarchy.read(&origin, &Arc::new(fetch), within(Duration::from_secs(60))).await;
    assert!(read.expect("read").bytes[..] == *image);
    assert_eq!((server.requests(), server.sent()), (3, bytes));
}
