//! Ranges that break are gone on with in the version of their object that they began
//! in, and in no other.

use std::sync::Arc;
use std::time::Duration;

use tpad_manifest::BlockId;
use tpad_store::{
    BlockFetch, ErrorKind, FetchPart, Hierarchy, ObjectOrigin, Origin, OriginError, OriginOptions,
    ReadError, Served, StoreMetrics,
};

use crate::model::{MIB, config, metric, within};
use crate::server::{Manner, Server, Tags};

/// A block that is one range of an object.
struct Scene {
    server: Server,
    metrics: StoreMetrics,
    hierarchy: Arc<Hierarchy>,
    read: Result<Served, ReadError>,
}

/// Reads the block of so many bytes that the object has in this version.
async fn read(bytes: usize, version: u8, manner: Manner, tags: Tags) -> Scene {
    let content: Vec<u8> = (0..bytes + 100).map(|n| (n % 241) as u8).collect();
    let server = Server::tagged("root/shard", &content, manner, tags).await;
    let options = OriginOptions { retries: 2, ..OriginOptions::default() };
    let origin = ObjectOrigin::open(&server.url("root"), &options).expect("opened");
    let origin: Arc<dyn Origin> = Arc::new(origin);
    let mut image = Server::version(&content[50..50 + bytes], version);
    image.resize(bytes.next_multiple_of(256), 0);
    let parts = vec![FetchPart { object: "shard".into(), offset: 50, bytes: bytes as u64, at: 0 }];
    let (id, bytes) = (BlockId::of(&image), image.len() as u64);
    let fetch = Arc::new(BlockFetch { id, bytes, parts, class: "a".into() });
    let metrics = StoreMetrics::default();
    let hierarchy = Hierarchy::new(config(16 * MIB), vec![], metrics.clone()).expect("sound");
    let read = hierarchy.read(&origin, &fetch, within(Duration::from_secs(60))).await;
    if let Ok(served) = &read {
        assert!(served.bytes[..] == image[..], "{manner:?}, {tags:?}");
    }
    Scene { server, metrics, hierarchy, read }
}

impl Scene {
    fn wrong(&self) -> u64 {
        metric(&self.metrics, "tpad_verify_failures_total{level=\"object_store\"}")
    }
}

fn tagged(tags: &[Option<&str>]) -> Vec<Option<String>> {
    tags.iter().map(|tag| tag.map(str::to_owned)).collect()
}

/// Several spans, so that some are digested before the range breaks.
const BYTES: usize = (5 << 20) + 1000;

#[tokio::test]
async fn a_range_that_broke_goes_on_in_the_version_that_it_began_in() {
    let scene = read(BYTES, 0, Manner::Mends(2), Tags::Minded).await;
    scene.read.as_ref().expect("read");
    let began = Some("\"v0\"");
    assert_eq!(scene.server.conditions(), tagged(&[None, began, began]));
    assert_eq!(scene.server.sent(), BYTES as u64);
}

#[tokio::test]
async fn an_object_that_is_replaced_while_it_is_read_is_read_anew() {
    for tags in [Tags::Minded, Tags::Unminded] {
        let scene = read(BYTES, 1, Manner::Replaced, tags).await;
        scene.read.as_ref().expect("read");
        assert_eq!(scene.server.conditions(), tagged(&[None, Some("\"v0\""), None]), "{tags:?}");
        assert_eq!(scene.wrong(), 0, "{tags:?}: no image was of two versions");
    }
}

#[tokio::test]
async fn an_object_that_is_replaced_again_and_again_is_named() {
    let scene = read(BYTES, 1, Manner::Restless, Tags::Minded).await;
    let error = scene.read.as_ref().expect_err("never one version");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let ReadError::Origin { source: OriginError::Replaced { object }, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(*object, scene.server.url("root/shard"));
    assert!(error.to_string().contains(object), "{error}");
    let conditions = tagged(&[None, Some("\"v0\""), None, Some("\"v2\"")]);
    assert_eq!(scene.server.conditions(), conditions);
    assert_eq!(scene.hierarchy.status().arena.held, 0, "nothing is left of it");
}

#[tokio::test]
async fn a_weak_tag_is_compared_and_never_a_condition() {
    let scene = read(BYTES, 0, Manner::Mends(1), Tags::Weak).await;
    scene.read.as_ref().expect("read");
    assert_eq!(scene.server.conditions(), tagged(&[None, None]));
    let scene = read(BYTES, 1, Manner::Replaced, Tags::Weak).await;
    scene.read.as_ref().expect("read");
    assert_eq!(scene.server.conditions(), tagged(&[None, None, None]));
    assert_eq!(scene.wrong(), 0);
}

#[tokio::test]
async fn without_tags_the_digest_finds_out_an_image_of_two_versions() {
    let scene = read(BYTES, 1, Manner::Replaced, Tags::None).await;
    scene.read.as_ref().expect("read again");
    assert_eq!(scene.server.conditions(), tagged(&[None, None, None]));
    assert_eq!(scene.wrong(), 1);
}

#[tokio::test]
async fn a_range_of_which_nothing_came_may_begin_in_any_version() {
    // Half of a byte is none.
    let scene = read(1, 1, Manner::Replaced, Tags::Minded).await;
    scene.read.as_ref().expect("read");
    assert_eq!(scene.server.conditions(), tagged(&[None, None]));
    assert_eq!(scene.wrong(), 0);
}
