//! Blocks on their way home, layer after layer: as many at once as a source makes
//! something of.

use std::pin::pin;

use futures::stream::{FuturesUnordered, Stream, StreamExt as _};
use tpad_store::{ErrorKind, Medium};

use crate::EngineError;
use crate::generation::ScopedBlock;

/// Blocks on their way at a time, whatever they take: enough that the next ones are
/// read while some are checked and written.
const AT_ONCE: usize = 16;

/// Blocks on their way at most, if they are small: a store that takes 50 ms for each
/// gives 5,000 of them a second.
const MOST_AT_ONCE: usize = 256;

/// What they take together beyond [`AT_ONCE`]: what a link of 10 Gbit/s carries in
/// 200 ms. How much of it is in memory is the hierarchy's affair, which gives it half
/// of what fills may take.
const AHEAD_BYTES: u64 = 256 << 20;

/// So many blocks in a row that could not be read: the store is away.
const ENOUGH: u32 = 64;

/// What a look at a tier's blocks left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Left {
    /// Nothing: what fits is there.
    Nothing,
    /// The home takes no blocks at present; they are served without.
    Home,
    /// Blocks could not be read.
    Blocks,
}

/// What became of a block.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It lies where it is to lie.
    There(Medium),
    /// There is no room for it.
    NoRoom,
    /// Its home takes no blocks at present.
    HomeAway,
    /// It could not be read; later, perhaps.
    Later(EngineError),
    /// It cannot be read.
    Lost(EngineError),
}

impl Outcome {
    pub(super) const fn left(&self) -> Left {
        match self {
            Self::There(_) | Self::NoRoom | Self::Lost(_) => Left::Nothing,
            Self::HomeAway => Left::Home,
            Self::Later(_) => Left::Blocks,
        }
    }
}

/// What happened on the way.
#[derive(Debug)]
pub(super) enum Passed<'a> {
    /// A block of so many bytes came to this.
    Block(u64, &'a Outcome),
    /// A layer's index could not be read.
    Layer(&'a EngineError),
}

/// Brings the blocks of all layers, in order. What is left to do, and whether a block
/// is lost. Blocks are on their way while a layer's index is: the end of a layer is no
/// reason to wait.
pub(super) async fn walk<F>(
    layers: impl Stream<Item = Result<Vec<ScopedBlock>, EngineError>>,
    mut bring: impl FnMut(ScopedBlock) -> F,
    mut note: impl FnMut(Passed<'_>),
) -> (Left, bool)
where
    F: Future<Output = (u64, Outcome)>,
{
    let (mut left, mut lost) = (Left::Nothing, false);
    let mut layers = pin!(layers.fuse());
    let mut way = Way::default();
    // Of the layer at hand.
    let mut blocks = Vec::new().into_iter().peekable();
    loop {
        while let Some(block) = blocks.next_if(|block: &ScopedBlock| way.takes(block.bytes)) {
            way.begin(block.bytes, bring(block));
        }
        tokio::select! {
            biased;
            Some((bytes, outcome)) = way.arrived() => {
                lost |= matches!(outcome, Outcome::Lost(_));
                left = left.max(outcome.left());
                note(Passed::Block(bytes, &outcome));
                if way.failed_in_a_row >= ENOUGH {
                    return (left, lost);
                }
            }
            Some(layer) = layers.next(), if blocks.peek().is_none() => match layer {
                Ok(layer) => blocks = layer.into_iter().peekable(),
                Err(error) => {
                    note(Passed::Layer(&error));
                    if passes(&error) {
                        return (Left::Blocks, lost);
                    }
                    lost = true;
                }
            },
            else => return (left, lost),
        }
    }
}

/// Blocks on their way.
struct Way<F> {
    blocks: FuturesUnordered<F>,
    bytes: u64,
    failed_in_a_row: u32,
}

impl<F> Default for Way<F> {
    fn default() -> Self {
        Self { blocks: FuturesUnordered::new(), bytes: 0, failed_in_a_row: 0 }
    }
}

impl<F: Future<Output = (u64, Outcome)>> Way<F> {
    /// Whether another block may be begun.
    fn takes(&self, bytes: u64) -> bool {
        let fits = self.bytes.saturating_add(bytes) <= AHEAD_BYTES;
        self.blocks.len() < if fits { MOST_AT_ONCE } else { AT_ONCE }
    }

    fn begin(&mut self, bytes: u64, block: F) {
        self.bytes += bytes;
        self.blocks.push(block);
    }

    /// The next one that ends, and how; `None` when all have.
    async fn arrived(&mut self) -> Option<(u64, Outcome)> {
        let (bytes, outcome) = self.blocks.next().await?;
        self.bytes -= bytes;
        let later = matches!(outcome, Outcome::Later(_));
        self.failed_in_a_row = if later { self.failed_in_a_row + 1 } else { 0 };
        Some((bytes, outcome))
    }
}

/// Whether a failure may be gone later.
pub(super) fn passes(error: &EngineError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Unavailable | ErrorKind::ResourceExhausted | ErrorKind::DeadlineExceeded
    )
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, stream};
    use tpad_manifest::{BlockId, BlockKey};

    use super::*;

    fn block(number: u32) -> ScopedBlock {
        let key = BlockKey::Router { tier: "a".parse().expect("an id"), layer: number };
        ScopedBlock { key, id: BlockId::of(&number.to_le_bytes()), bytes: u64::from(number) }
    }

    async fn there(block: ScopedBlock) -> (u64, Outcome) {
        // Not at its first look.
        tokio::task::yield_now().await;
        (block.bytes, Outcome::There(Medium::Dram))
    }

    #[tokio::test]
    async fn blocks_arrive_while_the_next_layers_index_does_not() {
        let layers = stream::iter([Ok(vec![block(1), block(2)]), Ok(vec![block(3)])]);
        let mut arrived = Vec::new();
        let mut walk = Box::pin(walk(layers.chain(stream::pending()), there, |passed| {
            let Passed::Block(bytes, _) = passed else { panic!("{passed:?}") };
            arrived.push(bytes);
        }));
        for _ in 0..10 {
            assert!((&mut walk).now_or_never().is_none(), "it has not seen all layers");
            tokio::task::yield_now().await;
        }
        drop(walk);
        arrived.sort_unstable();
        assert_eq!(arrived, [1, 2, 3]);
    }

    #[tokio::test]
    async fn all_layers_are_walked_but_no_more_than_a_source_takes_are_on_their_way() {
        let layer = |n: u32| Ok((n..n + 200).map(block).collect());
        let layers = stream::iter([layer(0), Ok(Vec::new()), layer(1000), layer(2000)]);
        let (now, most) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        let bring = |block| {
            now.set(now.get() + 1);
            most.set(most.get().max(now.get()));
            there(block).inspect(|_| now.set(now.get() - 1))
        };
        let mut count = 0;
        let end = walk(layers, bring, |_| count += 1).await;
        assert_eq!((end, count, most.get()), ((Left::Nothing, false), 600, MOST_AT_ONCE));
    }

    #[tokio::test]
    async fn a_source_that_is_away_ends_the_walk_and_a_lost_layer_does_not() {
        let away = || EngineError::Deadline { what: "a block".to_owned() };
        let layers = || stream::iter([Ok((0..500).map(block).collect()), Ok(vec![block(900)])]);
        let mut count = 0;
        let bring = async |block: ScopedBlock| (block.bytes, Outcome::Later(away()));
        let end = walk(layers(), bring, |_| count += 1).await;
        assert_eq!((end, count), ((Left::Blocks, false), ENOUGH));

        let broken = stream::iter([Err(EngineError::NothingSelected)]);
        let mut passed = Vec::new();
        let end = walk(broken.chain(layers()), there, |what| {
            passed.push(matches!(what, Passed::Layer(_)));
        });
        assert_eq!(end.await, (Left::Nothing, true));
        assert_eq!((passed.remove(0), passed.len()), (true, 501));

        let late = layers().chain(stream::iter([Err(away()), Ok(vec![block(901)])]));
        assert_eq!(walk(late, there, |_| {}).await, (Left::Blocks, false));
    }
}
