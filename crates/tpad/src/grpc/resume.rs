//! Which blocks of a fetch are left to send when it goes on with one that broke.

use tonic::Status;
use tpad_engine::Selected;
use tpad_manifest::BlockId;
use tpad_proto::v1;

use super::call::Call;
use super::status;

/// What a client says that it has.
#[derive(Debug, Default)]
pub(super) struct Resume {
    resumed: bool,
    /// From the first to before the second, in order.
    received: Vec<(usize, usize)>,
    partial: Option<Partial>,
}

/// A block that came in part.
#[derive(Clone, Debug)]
struct Partial {
    ordinal: usize,
    id: BlockId,
    offset: u64,
}

impl Resume {
    /// Reads what a request says, about blocks that are now `selected`.
    pub(super) fn read(
        wire: Option<v1::Resume>,
        selected: &Selected,
        call: &Call,
    ) -> Result<Self, Status> {
        let Some(wire) = wire else { return Ok(Self::default()) };
        let revision = selected.generation().revision();
        if wire.revision != revision {
            return Err(status::revision_changed(wire.revision, revision, call));
        }
        let invalid = |field, problem: &str| status::invalid(field, problem, call);
        let mut received = Vec::with_capacity(wire.received.len());
        let mut end = 0;
        for v1::OrdinalRange { first, count } in wire.received {
            let first = usize::try_from(first).ok().filter(|first| *first >= end);
            let last = usize::try_from(count).ok().zip(first).and_then(|(n, f)| f.checked_add(n));
            let (Some(first), Some(last)) = (first, last.filter(|last| *last <= selected.len()))
            else {
                return Err(invalid(
                    "resume.received",
                    "ranges go up, do not overlap and stay within what was asked for",
                ));
            };
            end = last;
            received.push((first, last));
        }
        let mut resume = Self { resumed: true, received, partial: None };
        if let Some(v1::PartialBlock { ordinal, block_id, offset }) = wire.partial {
            let id = <[u8; 32]>::try_from(&*block_id).map(BlockId::from_bytes);
            let ordinal = usize::try_from(ordinal).ok();
            let left = ordinal.filter(|n| *n < selected.len() && !resume.has(*n));
            let (Ok(id), Some(ordinal)) = (id, left) else {
                return Err(invalid(
                    "resume.partial",
                    "a block that was asked for and did not come, with its id of 32 bytes",
                ));
            };
            resume.partial = Some(Partial { ordinal, id, offset });
        }
        Ok(resume)
    }

    /// Whether the stream goes on with another.
    pub(super) fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Whether the client has the block.
    pub(super) fn has(&self, ordinal: usize) -> bool {
        let after = self.received.partition_point(|(first, _)| *first <= ordinal);
        after.checked_sub(1).is_some_and(|at| ordinal < self.received[at].1)
    }

    /// The block that is to be sent before all others.
    pub(super) fn first(&self) -> Option<usize> {
        self.partial.as_ref().map(|partial| partial.ordinal)
    }

    /// How much of a block's image the client has.
    pub(super) fn offset(&self, ordinal: usize, id: &BlockId, bytes: u64) -> u64 {
        let partial = self.partial.as_ref();
        let same = partial.filter(|partial| (partial.ordinal, &partial.id) == (ordinal, id));
        same.map_or(0, |partial| partial.offset.min(bytes))
    }
}
