//! Origins over HTTP that lie, stall and fail: never a wrong byte, and an error
//! that says what the caller can do.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tpad_manifest::BlockId;
use tpad_store::{
    BlockFetch, ErrorKind, FetchPart, ObjectOrigin, Origin, OriginError, OriginOptions,
    StoreMetrics,
};

use crate::model::{MIB, hierarchy, metric, within};
use crate::server::{Manner, Server};

fn content() -> Vec<u8> {
    (0..100_000u32).map(|n| (n % 241) as u8).collect()
}

fn options() -> OriginOptions {
    OriginOptions {
        read_timeout: Duration::from_millis(200),
        retries: 2,
        ..OriginOptions::default()
    }
}

async fn ranged(server: &Server, offset: u64, bytes: usize) -> Result<Vec<u8>, OriginError> {
    let origin = ObjectOrigin::open(&server.url("root"), &options()).expect("opened");
    let mut into = vec![0; bytes];
    let deadline = Instant::now() + Duration::from_secs(10);
    origin.read_range("shard", offset, &mut into, deadline).await?;
    Ok(into)
}

#[tokio::test]
async fn every_manner_has_its_error() {
    use ErrorKind::{DataLoss, Denied, NotFound, Unavailable};
    let table = [
        (Manner::Fewer(40), DataLoss, 3),
        (Manner::Fewer(100), DataLoss, 3),
        (Manner::More(40), DataLoss, 3),
        (Manner::Torn, Unavailable, 3),
        (Manner::Elsewhere, Unavailable, 3),
        (Manner::Whole, Unavailable, 3),
        (Manner::Silent, Unavailable, 3),
        (Manner::Recovers(10), Unavailable, 3),
        (Manner::Status(500), Unavailable, 3),
        (Manner::Status(403), Denied, 1),
        (Manner::Status(401), Denied, 1),
        (Manner::Status(404), NotFound, 1),
    ];
    for (manner, kind, requests) in table {
        let server = Server::start("root/shard", &content(), manner).await;
        let error = ranged(&server, 50, 100).await.expect_err("not the range");
        assert_eq!(error.kind(), kind, "{manner:?}: {error}");
        assert_eq!(server.requests(), requests, "{manner:?}: {error}");
    }
}

#[tokio::test]
async fn a_listing_that_is_refused_says_so() {
    use ErrorKind::{Denied, NotFound, Unavailable};
    for (status, kind, requests) in [(403, Denied, 1), (404, NotFound, 1), (500, Unavailable, 3)] {
        let server = Server::start("", &[], Manner::Status(status)).await;
        let endpoint = Some(server.url(""));
        let options = OriginOptions { endpoint, allow_http: true, ..options() };
        let origin = ObjectOrigin::open("s3://bucket/root", &options).expect("opened");
        let error = origin.list("").await.expect_err("refused");
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(server.requests(), requests, "{error}");
    }
}

#[tokio::test]
async fn passing_failures_are_tried_again() {
    let server = Server::start("root/shard", &content(), Manner::Recovers(2)).await;
    assert_eq!(ranged(&server, 50, 100).await.expect("read"), content()[50..150]);
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn a_shorter_object_is_told_from_a_failing_store() {
    let server = Server::start("root/shard", &content(), Manner::Honest).await;
    for offset in [99_950, 100_000, 1 << 40] {
        let error = ranged(&server, offset, 100).await.expect_err("beyond the end");
        assert!(matches!(error, OriginError::Truncated { bytes: 100_000, .. }), "{error}");
    }
}

#[tokio::test]
async fn retries_end_with_the_deadline() {
    let server = Server::start("root/shard", &content(), Manner::Status(503)).await;
    let options = OriginOptions { retries: 1_000_000, ..options() };
    let origin = ObjectOrigin::open(&server.url("root"), &options).expect("opened");
    let limit = Duration::from_millis(500);
    let started = Instant::now();
    let error = origin.read_range("shard", 0, &mut [0; 9], started + limit).await;
    let error = error.expect_err("never works");
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{error}");
    assert!(error.to_string().contains("503"), "the cause is named: {error}");
    assert!(started.elapsed() < limit + Duration::from_secs(5));
    assert!(server.requests() > 1);
}

#[tokio::test]
async fn a_server_that_flips_bits_is_found_out_and_asked_once_more() {
    let content = content();
    let server = Server::start("root/shard", &content, Manner::Flipped).await;
    let origin = ObjectOrigin::open(&server.url("root"), &options()).expect("opened");
    let origin: Arc<dyn Origin> = Arc::new(origin);
    let metrics = StoreMetrics::default();
    let config = tpad_store::HierarchyConfig::new(16 * MIB);
    let hierarchy = tpad_store::Hierarchy::new(config, vec![], metrics.clone()).expect("sound");
    let mut image = content[..1000].to_vec();
    image.resize(1024, 0);
    let parts = vec![FetchPart { object: "shard".into(), offset: 0, bytes: 1000, at: 0 }];
    let id = BlockId::of(&image);
    let fetch = Arc::new(BlockFetch { id, bytes: 1024, parts, class: "a".into() });
    let error = hierarchy.read(&origin, &fetch, within(Duration::from_secs(10))).await;
    let error = error.expect_err("wrong bytes");
    assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    assert_eq!(server.requests(), 2);
    let name = "tpad_verify_failures_total{level=\"object_store\"}";
    assert_eq!(metric(&metrics, name), 2);
}

#[tokio::test]
async fn nothing_listens() {
    let server = Server::honest("root/shard", &content()).await;
    let url = server.url("root");
    drop(server);
    let origin = ObjectOrigin::open(&url, &options()).expect("opened");
    let origin: Arc<dyn Origin> = Arc::new(origin);
    let parts = vec![FetchPart { object: "shard".into(), offset: 0, bytes: 1000, at: 0 }];
    let fetch = BlockFetch { id: BlockId::of(b""), bytes: 1024, parts, class: "a".into() };
    let hierarchy = hierarchy(16 * MIB, vec![]);
    let read = hierarchy.read(&origin, &Arc::new(fetch), within(Duration::from_secs(10))).await;
    assert_eq!(read.expect_err("no server").kind(), ErrorKind::Unavailable);
}
