//! What every level, every origin and every wrapper around one has to do. The
//! functions panic where it does not.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;
use tpad_manifest::BlockId;

use crate::{
    Arena, BlockBytes, CacheClass, ErrorKind, Level, LevelError, LevelRead, Origin, OriginError,
    Urgency,
};

/// What a sound level makes of blocks: it answers with what was admitted, or
/// not at all.
///
/// `level` is empty and holds at least 8 MiB. `arena` has room for all blocks
/// at once (16 MiB): a level that keeps slots keeps them there.
pub async fn level_conforms(level: &Arc<dyn Level>, arena: &Arc<Arena>) {
    an_empty_level_has_nothing(&**level, arena).await;
    what_was_admitted_is_read_back(&**level, arena).await;
    capacity_holds(&**level, arena).await;
    level_is_safe(level, arena, 500).await;
}

async fn an_empty_level_has_nothing(level: &dyn Level, arena: &Arc<Arena>) {
    let (id, block) = block(arena, 1, 4096);
    assert!(!level.contains(&id));
    assert!(level.in_place(&id).is_none());
    assert_eq!((level.usage().blocks, level.usage().bytes), (0, 0));
    assert!(read(level, &id, arena, block.len()).await.expect("works").is_none());
    level.remove(&id).await.expect("removing what is not there is no error");
}

async fn what_was_admitted_is_read_back(level: &dyn Level, arena: &Arc<Arena>) {
    for (n, bytes) in [0, 1, 255, 256, 4096, 4097, 300_000, (1 << 20) + 256].into_iter().enumerate()
    {
        let (id, block) = block(arena, n as u64, bytes);
        let class = CacheClass::from("conformance");
        for _twice in 0..2 {
            assert!(level.admit(&id, &class, &block).await.expect("works"), "there is room");
        }
        assert!(level.contains(&id));
        assert_eq!(level.usage().blocks, 1);
        assert!(level.usage().bytes >= bytes as u64);
        let found = read(level, &id, arena, bytes).await.expect("works").expect("there");
        assert_eq!(found[..], block[..]);
        if let Some(in_place) = level.in_place(&id) {
            assert_eq!(in_place[..], block[..]);
        }
        // Another size is another block: an answer would be cut or padded.
        assert!(matches!(read(level, &id, arena, bytes + 256).await, Err(_) | Ok(None)));
        let reader = level.in_place(&id);
        level.remove(&id).await.expect("works");
        assert!(!level.contains(&id));
        assert!(read(level, &id, arena, bytes).await.expect("works").is_none());
        assert_eq!((level.usage().blocks, level.usage().bytes), (0, 0));
        assert!(reader.is_none_or(|reader| reader[..] == block[..]), "readers keep what they have");
    }
}

async fn capacity_holds(level: &dyn Level, arena: &Arc<Arena>) {
    let class = CacheClass::from("conformance");
    let capacity = level.usage().capacity;
    let count = capacity / (1 << 20) + 4;
    for n in 0..count.min(64) {
        let (id, block) = block(arena, 1000 + n, 1 << 20);
        level.admit(&id, &class, &block).await.expect("works");
        assert!(level.usage().bytes <= capacity);
    }
    assert!(level.usage().blocks > 0);
    for n in 0..count {
        level.remove(&block_id(1000 + n, 1 << 20)).await.expect("works");
    }
    assert_eq!((level.usage().blocks, level.usage().bytes), (0, 0));
}

/// What even a failing level has to do: under concurrent reads, admissions and
/// removals, an answer whose check holds is the right block.
pub async fn level_is_safe(level: &Arc<dyn Level>, arena: &Arc<Arena>, steps: u64) {
    let tasks = (0..4u64).map(|task| {
        let (level, arena) = (Arc::clone(level), Arc::clone(arena));
        tokio::spawn(async move {
            let mut rng = ChaCha8Rng::seed_from_u64(task);
            let class = CacheClass::from("conformance");
            for _ in 0..steps {
                let n = rng.random_range(0..12u64);
                let bytes = usize::try_from(1 + n * 9_001).expect("small");
                let (id, expected) = (block_id(n, bytes), content(n, bytes));
                match rng.random_range(0..6) {
                    0 | 1 => {
                        let Ok(Some(slot)) = arena.slot(bytes) else { continue };
                        let mut slot = slot;
                        slot.copy_from_slice(&expected);
                        // A failure is the level's right.
                        let _ = level.admit(&id, &class, &slot.freeze()).await;
                    }
                    2 => {
                        let _ = level.remove(&id).await;
                    }
                    3 => {
                        let in_place = level.in_place(&id);
                        assert!(in_place.is_none_or(|found| found[..] == expected));
                    }
                    _ => {
                        if let Ok(Some(found)) = read(&*level, &id, &arena, bytes).await {
                            assert_eq!(found, expected);
                        }
                    }
                }
                tokio::task::yield_now().await;
            }
        })
    });
    for task in join_all(tasks).await {
        task.expect("no panic");
    }
}

/// The block's bytes if the level has it and its check holds.
async fn read(
    level: &dyn Level,
    id: &BlockId,
    arena: &Arc<Arena>,
    bytes: usize,
) -> Result<Option<Vec<u8>>, LevelError> {
    let slot = arena.slot(bytes).expect("memory").expect("room");
    match level.read(id, slot, Urgency::Demand).await? {
        LevelRead::Hit { slot, check } => Ok(check.holds(id, &slot).then(|| slot.to_vec())),
        LevelRead::Miss(_) => Ok(None),
    }
}

fn content(n: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    ChaCha8Rng::seed_from_u64(n).fill(&mut content[..]);
    content
}

fn block_id(n: u64, bytes: usize) -> BlockId {
    BlockId::of(&content(n, bytes))
}

fn block(arena: &Arc<Arena>, n: u64, bytes: usize) -> (BlockId, BlockBytes) {
    let mut slot = arena.slot(bytes).expect("memory").expect("room");
    slot.copy_from_slice(&content(n, bytes));
    (BlockId::of(&slot), slot.freeze())
}

/// What a sound origin makes of ranges of `object`, which holds `content`.
pub async fn origin_conforms(origin: &Arc<dyn Origin>, object: &str, content: &[u8]) {
    assert!(content.len() >= 10_000, "too small to tell");
    let size = content.len();
    for (offset, bytes) in
        [(0, 0), (0, 1), (0, size), (size - 1, 1), (1, size - 2), (size / 2, 4097), (size, 0)]
    {
        let found = range(&**origin, object, offset as u64, bytes).await.expect("there");
        assert_eq!(found, content[offset..offset + bytes], "{bytes} bytes from {offset}");
    }
    for (offset, bytes) in [(size as u64, 1), (size as u64 - 1, 2), (0, size + 1), (u64::MAX, 1)] {
        let error = range(&**origin, object, offset, bytes).await.expect_err("beyond the end");
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{error}");
    }
    let error = range(&**origin, "no/such/object", 0, 1).await.expect_err("missing");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    origin_is_safe(origin, object, content, 100).await;
}

/// What even a failing origin's caller may rely on: reads end, and leave what is
/// beside their range alone.
pub async fn origin_is_safe(origin: &Arc<dyn Origin>, object: &str, content: &[u8], reads: u64) {
    let tasks = (0..4u64).map(|task| {
        let (origin, object) = (Arc::clone(origin), object.to_owned());
        let size = content.len();
        let expected = content.to_vec();
        tokio::spawn(async move {
            let mut rng = ChaCha8Rng::seed_from_u64(task);
            let mut right = 0;
            for _ in 0..reads {
                let offset = rng.random_range(0..size);
                let bytes = rng.random_range(0..=(size - offset).min(5000));
                let found = range(&*origin, &object, offset as u64, bytes).await;
                if found.is_ok_and(|found| found == expected[offset..offset + bytes]) {
                    right += 1;
                }
            }
            right
        })
    });
    let right: u64 = join_all(tasks).await.into_iter().map(|task| task.expect("no panic")).sum();
    assert!(right > 0, "not one read was right");
}

async fn range(
    origin: &dyn Origin,
    object: &str,
    offset: u64,
    bytes: usize,
) -> Result<Vec<u8>, OriginError> {
    const MARK: u8 = 0xA5;
    let mut into = vec![MARK; bytes + 32];
    let deadline = Instant::now() + Duration::from_secs(5);
    let read = origin.read_range(object, offset, &mut into[16..16 + bytes], deadline);
    // A hanging origin is its caller's to give up on.
    let read = tokio::time::timeout(Duration::from_secs(10), read).await;
    assert!(into[..16].iter().chain(&into[16 + bytes..]).all(|byte| *byte == MARK));
    let late = || OriginError::Deadline { object: object.to_owned(), last: None };
    read.map_err(|_| late())??;
    Ok(into[16..16 + bytes].to_vec())
}
