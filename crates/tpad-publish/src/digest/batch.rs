//! Images that are read together.

use std::cmp::Reverse;

use tpad_manifest::BlockId;
use tpad_store::{BlockFetch, FetchPart, OriginError};

use super::{Buffers, Digester, WINDOW_BYTES};
use crate::blocking::blocking;

/// The most bytes between two parts that are read and dropped: what a store
/// sends in about the time that another request would take.
const MAX_GAP_BYTES: u64 = 64 << 10;

/// The most parts of one batch. It bounds what is read for gaps.
const MAX_PARTS: usize = 1024;

/// What pads images.
const ZEROS: [u8; 256] = [0; 256];

/// Divides images into batches in the order of their first bytes. A batch of
/// several is no larger than a window.
pub(super) fn plan(images: &[BlockFetch]) -> Vec<Vec<usize>> {
    let first = |image: &BlockFetch| {
        let parts = image.parts.iter().map(|part| (&*part.object, part.offset));
        parts.min().map(|(object, offset)| (object.to_owned(), offset))
    };
    let mut order: Vec<usize> = (0..images.len()).collect();
    order.sort_by_cached_key(|image| first(&images[*image]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let (mut bytes, mut parts) = (u64::MAX, 0);
    for image in order {
        let (more_bytes, more_parts) = (images[image].bytes, images[image].parts.len());
        bytes = bytes.saturating_add(more_bytes);
        parts += more_parts;
        match batches.last_mut() {
            Some(batch) if bytes <= WINDOW_BYTES && parts <= MAX_PARTS => batch.push(image),
            _ => {
                (bytes, parts) = (more_bytes, more_parts);
                batches.push(vec![image]);
            }
        }
    }
    batches
}

/// A stretch of an object that is read into a buffer.
struct Span<'a> {
    object: &'a str,
    offset: u64,
    bytes: u64,
    useful: u64,
}

impl Span<'_> {
    const fn end(&self) -> u64 {
        self.offset + self.bytes
    }

    /// Whether `part`, which begins no earlier, should be read with this.
    fn takes(&self, part: &FetchPart) -> bool {
        if self.object != &*part.object {
            return false;
        }
        let gap = part.offset.saturating_sub(self.end());
        let dropped = self.bytes - self.useful.min(self.bytes) + gap;
        gap <= MAX_GAP_BYTES && dropped <= MAX_GAP_BYTES.max(self.useful + part.bytes)
    }
}

/// A part's place in its image and in the buffer.
struct Placed {
    at: u64,
    from: usize,
    bytes: usize,
}

impl Digester<'_> {
    /// Reads the images of a batch together and digests each.
    pub(super) async fn digest_batch(
        &self,
        images: &[BlockFetch],
        batch: &[usize],
        buffers: &Buffers,
    ) -> Result<Vec<BlockId>, OriginError> {
        let (spans, placed) = arrange(images, batch);
        let total = spans.iter().map(|span| length(span.bytes)).sum();
        let mut buffer = buffers.take(total);
        let mut rest = &mut buffer[..total];
        let mut pieces = Vec::with_capacity(spans.len());
        for span in &spans {
            let (into, after) = std::mem::take(&mut rest).split_at_mut(length(span.bytes));
            pieces.push((span.object, span.offset, into));
            rest = after;
        }
        let read = self.read(pieces).await;
        if let Err(error) = read {
            buffers.give(buffer);
            return Err(error);
        }
        let sizes: Vec<u64> = batch.iter().map(|image| images[*image].bytes).collect();
        let done = sizes.iter().sum();
        let work = move || {
            let digest = |(bytes, parts): (&u64, &Vec<Placed>)| digest(*bytes, parts, &buffer);
            let digests: Vec<BlockId> = sizes.iter().zip(&placed).map(digest).collect();
            (digests, buffer)
        };
        let (digests, buffer) = blocking(work).await;
        buffers.give(buffer);
        self.progress.advance(done);
        Ok(digests)
    }
}

/// The stretches to read, one after the other in a buffer, and where each
/// image's parts come to lie there.
fn arrange<'a>(images: &'a [BlockFetch], batch: &[usize]) -> (Vec<Span<'a>>, Vec<Vec<Placed>>) {
    let mut parts: Vec<(usize, &FetchPart)> = Vec::new();
    for (n, image) in batch.iter().enumerate() {
        parts.extend(images[*image].parts.iter().map(|part| (n, part)));
    }
    parts.sort_by(|(_, a), (_, b)| {
        let key = |part: &FetchPart| (part.offset, Reverse(part.bytes));
        a.object.cmp(&b.object).then_with(|| key(a).cmp(&key(b)))
    });
    let mut spans: Vec<Span<'a>> = Vec::new();
    let mut placed: Vec<Vec<Placed>> = batch.iter().map(|_| Vec::new()).collect();
    // Where the last span begins in the buffer.
    let mut start = 0;
    for (image, part) in parts {
        match spans.last_mut() {
            Some(span) if span.takes(part) => {
                span.bytes = span.bytes.max(part.offset + part.bytes - span.offset);
                span.useful += part.bytes;
            }
            last => {
                start += last.map_or(0, |span| length(span.bytes));
                let FetchPart { object, offset, bytes, .. } = part;
                spans.push(Span { object, offset: *offset, bytes: *bytes, useful: *bytes });
            }
        }
        let into_span = spans.last().map_or(0, |span| length(part.offset - span.offset));
        placed[image].push(Placed {
            at: part.at,
            from: start + into_span,
            bytes: length(part.bytes),
        });
    }
    for parts in &mut placed {
        parts.sort_unstable_by_key(|part| part.at);
    }
    (spans, placed)
}

fn digest(image_bytes: u64, parts: &[Placed], buffer: &[u8]) -> BlockId {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        pad(&mut hasher, part.at);
        hasher.update(&buffer[part.from..part.from + part.bytes]);
    }
    pad(&mut hasher, image_bytes);
    hasher.finalize().into()
}

/// Feeds zeros up to the image's byte `to`.
fn pad(hasher: &mut blake3::Hasher, to: u64) {
    let mut missing = length(to.saturating_sub(hasher.count()));
    while missing > 0 {
        let some = missing.min(ZEROS.len());
        hasher.update(&ZEROS[..some]);
        missing -= some;
    }
}

/// Bytes that are about to be in memory.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
