//! A span of an image: one subtree of its digest.

use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use tpad_manifest::BlockId;

use crate::arena::SlotPart;

/// What is digested at a time: a power of two of BLAKE3's chunks, so that each span is
/// a subtree whatever the image's size. It takes some tenths of a millisecond, many
/// times what handing it over costs.
pub(crate) const SPAN_BYTES: usize = 1 << 20;

/// A span that has come whole.
#[derive(Debug)]
pub(crate) struct Span {
    index: usize,
    /// Whether it is the whole image.
    alone: bool,
    /// Without gaps, in order.
    parts: Vec<SlotPart>,
}

/// A span and the digest of its subtree.
#[derive(Debug)]
pub(crate) struct Digested {
    pub(super) index: usize,
    pub(super) parts: Vec<SlotPart>,
    pub(super) value: ChainingValue,
}

impl Span {
    /// Of parts that cover it.
    pub(super) fn new(index: usize, alone: bool, mut parts: Vec<SlotPart>) -> Self {
        parts.sort_unstable_by_key(SlotPart::at);
        Self { index, alone, parts }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(SlotPart::len).sum()
    }

    /// Its digest. Computed on the calling thread.
    pub(crate) fn digest(mut self) -> Digested {
        let mut hasher = blake3::Hasher::new();
        hasher.set_input_offset(self.index as u64 * SPAN_BYTES as u64);
        for part in &mut self.parts {
            hasher.update(part.bytes_mut());
        }
        let value = if self.alone { hasher.finalize().into() } else { hasher.finalize_non_root() };
        Digested { index: self.index, parts: self.parts, value }
    }
}

/// The digest of an image, from those of its spans in order. `None` of no spans.
pub(super) fn root(spans: &[ChainingValue]) -> Option<BlockId> {
    match spans {
        [] => None,
        // Alone it is the root itself.
        [only] => Some(BlockId::from_bytes(*only)),
        _ => {
            let (left, right) = halves(spans);
            Some(merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).into())
        }
    }
}

fn subtree(spans: &[ChainingValue]) -> ChainingValue {
    match spans {
        [only] => *only,
        _ => {
            let (left, right) = halves(spans);
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// To the left as many as a power of two below their number has, as BLAKE3 would have
/// it of the chunks: only the last span may be short.
fn halves(spans: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    spans.split_at(spans.len().div_ceil(2).next_power_of_two().min(spans.len()))
}
