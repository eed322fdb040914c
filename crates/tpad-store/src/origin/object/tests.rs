use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::{ErrorKind, Origin as _};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn origin_of(directory: &std::path::Path) -> ObjectOrigin {
    let root = directory.to_str().expect("UTF-8");
    ObjectOrigin::open(root, &OriginOptions::default()).expect("a directory")
}

#[tokio::test]
async fn directories_are_read_written_and_listed() {
    let directory = tempfile::tempdir().expect("directory");
    let origin = origin_of(&directory.path().join("not/there/yet"));
    assert_eq!(origin.list("").await.expect("empty"), []);
    assert_eq!(origin.get("a", 10).await.expect_err("missing").kind(), ErrorKind::NotFound);

    let first = origin.create("tpad/revisions/1.json", Bytes::from_static(b"one")).await;
    assert_eq!(first.expect("created"), Created::New);
    let second = origin.create("tpad/revisions/1.json", Bytes::from_static(b"two")).await;
    assert_eq!(second.expect("left alone"), Created::Exists);
    origin.put("a b%20#x/ü", Bytes::from_static(b"0123456789")).await.expect("written");
    origin.put("a b%20#x/ü", Bytes::from_static(b"0123456789")).await.expect("written again");

    assert_eq!(origin.get("tpad/revisions/1.json", 3).await.expect("read"), "one");
    let too_large = origin.get("tpad/revisions/1.json", 2).await.expect_err("larger");
    assert!(matches!(too_large, OriginError::TooLarge { bytes: 3, limit: 2, .. }), "{too_large}");
    assert_eq!(origin.size("a b%20#x/ü").await.expect("there"), 10);
    let listed = origin.list("").await.expect("listed");
    let paths: Vec<&str> = listed.iter().map(|entry| &*entry.path).collect();
    assert_eq!(paths, ["a b%20#x/ü", "tpad/revisions/1.json"]);
    assert_eq!(listed[0], origin.entry("a b%20#x/ü").await.expect("there"));
    let below = origin.list("tpad/revisions").await.expect("listed");
    assert_eq!(below.len(), 1);
    assert_eq!(below[0].path, "tpad/revisions/1.json");
}

#[tokio::test]
async fn ranges_are_exact_or_fail() {
    let directory = tempfile::tempdir().expect("directory");
    let content: Vec<u8> = (0..3_000_001u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(directory.path().join("shard"), &content).expect("written");
    let origin = origin_of(directory.path());
    for (offset, bytes) in [(0, 1), (1, 2_999_999), (3_000_000, 1), (5, 0), (17, 1 << 20)] {
        let mut into = vec![0xFF; bytes];
        origin.read_range("shard", offset as u64, &mut into, soon()).await.expect("read");
        assert_eq!(into, content[offset..offset + bytes]);
    }
    for (offset, bytes) in [(3_000_001u64, 1), (2_999_999, 3), (u64::MAX, 1)] {
        let mut into = vec![0; bytes];
        let error = origin.read_range("shard", offset, &mut into, soon()).await.expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    }
    let gone = origin.read_range("other", 0, &mut [0], soon()).await.expect_err("missing");
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    let within = origin.read_range("shard/x", 0, &mut [0], soon()).await.expect_err("a file");
    assert_eq!(within.kind(), ErrorKind::NotFound, "{within}");
}

#[tokio::test]
async fn links_are_followed_and_dots_are_not() {
    let directory = tempfile::tempdir().expect("directory");
    let blobs = directory.path().join("blobs");
    let snapshot = directory.path().join("snapshots/main");
    std::fs::create_dir_all(&blobs).expect("made");
    std::fs::create_dir_all(&snapshot).expect("made");
    std::fs::write(blobs.join("abc"), b"weights").expect("written");
    std::os::unix::fs::symlink("../../blobs/abc", snapshot.join("model.safetensors"))
        .expect("linked");
    let origin = origin_of(&snapshot);
    assert_eq!(origin.get("model.safetensors", 100).await.expect("read"), "weights");
    assert_eq!(origin.list("").await.expect("listed")[0].bytes, 7);
    for path in ["../../blobs/abc", "/etc/hostname", "x/../model.safetensors", ""] {
        let error = origin.get(path, 100).await.expect_err("refused");
        assert!(matches!(error, OriginError::Path { .. }), "{error}");
        let error = origin.create(path, Bytes::new()).await.expect_err("refused");
        assert!(matches!(error, OriginError::Path { .. }), "{error}");
    }
}

/// A recursive walk fails on each of these.
#[tokio::test]
async fn one_directory_is_listed_whatever_lies_in_it() {
    use std::os::unix::ffi::OsStrExt as _;

    let directory = tempfile::tempdir().expect("directory");
    let origin = origin_of(&directory.path().join("not/there/yet"));
    assert_eq!(origin.list_directory("").await.expect("empty"), Listing::default());
    let root = directory.path();
    std::os::unix::fs::symlink(".", root.join("self")).expect("linked");
    std::os::unix::fs::symlink("/not/there", root.join("dangling")).expect("linked");
    std::fs::write(root.join(std::ffi::OsStr::from_bytes(b"\xff")), b"").expect("written");
    std::fs::write(root.join("a\nb"), b"").expect("written");
    std::fs::create_dir_all(root.join("original/deep")).expect("made");
    std::fs::write(root.join("original/b"), b"2").expect("written");
    std::fs::write(root.join("original/deep/c"), b"3").expect("written");
    std::fs::write(root.join("a"), b"1").expect("written");
    let origin = origin_of(root);
    let listing = origin.list_directory("").await.expect("listed");
    assert_eq!(listing.objects, [origin.entry("a").await.expect("there")]);
    assert_eq!(listing.directories, ["original", "self"]);
    let below = origin.list_directory("original").await.expect("listed");
    assert_eq!(below.objects, [origin.entry("original/b").await.expect("there")]);
    assert_eq!(below.directories, ["original/deep"]);
    let file = origin.list_directory("a").await.expect_err("a file");
    assert_eq!(file.kind(), ErrorKind::NotFound, "{file}");
}

#[tokio::test]
async fn another_root_is_opened_the_same_way() {
    let directory = tempfile::tempdir().expect("directory");
    let origin = origin_of(directory.path());
    let other = directory.path().join("other");
    let other = origin.at(other.to_str().expect("UTF-8")).expect("opened");
    other.put("x", Bytes::from_static(b"1")).await.expect("written");
    assert_eq!(origin.list("").await.expect("listed")[0].path, "other/x");
    assert!(other.is_local() && other.url().ends_with("/other"));
}

#[tokio::test]
async fn http_is_read_only() {
    let origin = ObjectOrigin::open("http://localhost:1/x", &OriginOptions::default());
    let origin = origin.expect("opened");
    let listing = origin.list("").await.expect_err("not possible");
    assert_eq!(listing.kind(), ErrorKind::FailedPrecondition);
    let listing = origin.list_directory("").await.expect_err("not possible");
    assert_eq!(listing.kind(), ErrorKind::FailedPrecondition);
    let writing = origin.create("a", Bytes::new()).await.expect_err("not possible");
    assert_eq!(writing.kind(), ErrorKind::FailedPrecondition);
}
