//! An image on its way into its slot, digested as it comes.
//!
//! BLAKE3 is a tree, so what is needed of the image is its parts in no order: it is
//! cut into spans of one size, each a subtree, and a span is digested as soon as its
//! last byte is there. When the last byte of the image has come, only that byte's
//! span is left.

mod span;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;
use tpad_manifest::BlockId;

use self::span::root;
pub(crate) use self::span::{Digested, SPAN_BYTES, Span};
use crate::SlotMut;
use crate::arena::SlotPart;

/// What has come of an image. A part that has come belongs to its span, and goes on
/// with it to whoever digests it.
pub(crate) struct Arrival {
    spans: Mutex<Vec<Incomplete>>,
    /// As many places as there are spans: a span that nobody digests any more is
    /// dropped, and its part of the slot with it.
    whole: mpsc::Sender<Span>,
}

/// A span that has not come whole.
#[derive(Debug)]
struct Incomplete {
    parts: Vec<SlotPart>,
    left: usize,
}

/// What is digested of an image.
pub(crate) struct Image {
    digests: Vec<Option<Digested>>,
}

/// Memory that a range of an object is read into, from its start. What has come may
/// be taken from it at once, to be digested while the rest is on its way.
pub struct Intake {
    arrival: Arc<Arrival>,
    /// What has not been taken.
    part: SlotPart,
    /// Bytes at its start that have come.
    come: usize,
}

impl Arrival {
    /// Of an image of so many bytes, of which nothing has come: with the spans that
    /// will be whole, in the order in which they are.
    pub(crate) fn new(bytes: usize) -> (Arc<Self>, mpsc::Receiver<Span>, Image) {
        let count = bytes.div_ceil(SPAN_BYTES).max(1);
        let span = |n| Incomplete {
            parts: Vec::new(),
            left: bytes.saturating_sub(n * SPAN_BYTES).min(SPAN_BYTES),
        };
        let (whole, spans) = mpsc::channel(count);
        let arrival = Self { spans: Mutex::new((0..count).map(span).collect()), whole };
        (Arc::new(arrival), spans, Image { digests: (0..count).map(|_| None).collect() })
    }

    /// A part of the image has come.
    pub(crate) fn take(&self, mut part: SlotPart) {
        loop {
            let index = part.at() / SPAN_BYTES;
            let bytes = part.len().min(left_of_span(part.at()));
            self.add(index, part.split_to(bytes));
            if part.is_empty() {
                return;
            }
        }
    }

    fn add(&self, index: usize, part: SlotPart) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let alone = spans.len() == 1;
        let Some(span) = spans.get_mut(index) else { return };
        span.left = span.left.saturating_sub(part.len());
        span.parts.push(part);
        if span.left > 0 {
            return;
        }
        let parts = std::mem::take(&mut span.parts);
        drop(spans);
        // Fails when the read was given up.
        let _given_up = self.whole.try_send(Span::new(index, alone, parts));
    }
}

impl Image {
    /// Takes back a span.
    pub(crate) fn add(&mut self, digested: Digested) {
        if let Some(place) = self.digests.get_mut(digested.index) {
            *place = Some(digested);
        }
    }

    /// The slot in one piece, and the digest of what is in it. `None` if not all of
    /// it is here.
    pub(crate) fn joined(self) -> Option<(SlotMut, BlockId)> {
        let digested: Vec<Digested> = self.digests.into_iter().collect::<Option<_>>()?;
        let values: Vec<_> = digested.iter().map(|digested| digested.value).collect();
        let parts = digested.into_iter().flat_map(|digested| digested.parts).collect();
        Some((SlotMut::joined(parts)?, root(&values)?))
    }
}

impl Intake {
    pub(crate) fn new(arrival: Arc<Arrival>, part: SlotPart) -> Self {
        Self { arrival, part, come: 0 }
    }

    /// How many bytes are to come.
    #[must_use]
    pub fn left(&self) -> usize {
        self.part.len() - self.come
    }

    /// The memory of what is to come.
    pub fn rest(&mut self) -> &mut [u8] {
        self.part.bytes_mut().get_mut(self.come..).unwrap_or_default()
    }

    /// The first so many bytes of the rest have come, and are final.
    pub fn came(&mut self, bytes: usize) {
        self.come += bytes.min(self.left());
        loop {
            let next = self.part.len().min(left_of_span(self.part.at()));
            if next == 0 || self.come < next {
                return;
            }
            self.come -= next;
            self.arrival.take(self.part.split_to(next));
        }
    }
}

/// What is written has come.
impl io::Write for Intake {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.left());
        let (rest, bytes) = (self.rest().get_mut(..count), bytes.get(..count));
        if let (Some(rest), Some(bytes)) = (rest, bytes) {
            rest.copy_from_slice(bytes);
        }
        self.came(count);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Intake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Intake").field("left", &self.left()).finish_non_exhaustive()
    }
}

/// From a place of the image to the end of its span.
const fn left_of_span(at: usize) -> usize {
    SPAN_BYTES - at % SPAN_BYTES
}

#[cfg(test)]
mod tests;
