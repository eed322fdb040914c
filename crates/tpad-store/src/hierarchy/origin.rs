//! Reading one block from its origin: ranges in, the image and its digest out.

use std::pin::pin;
use std::sync::Arc;

use futures::stream::{self, FuturesUnordered, StreamExt as _};
use tokio::time::Instant;
use tpad_manifest::BlockId;

use super::flight::{Flight, Stage};
use super::lanes::{Asked, Lane};
use super::ranges::{Carved, Range, carve, ranges};
use super::verify::INLINE_BYTES;
use super::{Inner, ReadError};
use crate::arena::SlotPart;
use crate::arrival::{Arrival, Span};
use crate::{Intake, Medium, OriginError, SlotMut};

impl Inner {
    /// Reads the block from the origin; once more if its bytes are wrong, which
    /// a damaged transfer may be and a damaged object is not, or if an object was
    /// replaced meanwhile: other ranges of it may have come before.
    pub(super) async fn fill_from_origin(
        &self,
        flight: &Flight,
        mut slot: SlotMut,
        deadline: Instant,
    ) -> Result<(SlotMut, Medium), ReadError> {
        let id = flight.fetch.id;
        let mut again = true;
        loop {
            let (read, found) = match self.fetch(flight, slot, deadline).await {
                Err(ReadError::Origin { source: OriginError::Replaced { .. }, .. }) if again => {
                    again = false;
                    // The old slot came free with what was read into it.
                    slot = self.room(flight).await?;
                    flight.set_stage(Stage::Filling);
                    continue;
                }
                fetched => fetched?,
            };
            if found == id {
                return Ok((read, Medium::ObjectStore));
            }
            self.metrics.verify_failed(Medium::ObjectStore);
            if !again {
                let origin = flight.origin.url().to_owned();
                return Err(ReadError::Digest { id, origin, found });
            }
            again = false;
            slot = read;
        }
    }

    /// Fetches all ranges of a block into its image, several at once, and zeroes
    /// what no range covers. What has come is digested meanwhile: returns the image
    /// and its digest.
    async fn fetch(
        &self,
        flight: &Flight,
        slot: SlotMut,
        deadline: Instant,
    ) -> Result<(SlotMut, BlockId), ReadError> {
        let id = flight.fetch.id;
        let refused = |problem| ReadError::Fetch { id, problem };
        let ranges = ranges(&flight.fetch, &self.tuning);
        let (arrival, spans, mut image) = Arrival::new(slot.len());
        let carved = carve(slot, &ranges);
        let Carved { targets, padding } =
            carved.ok_or_else(|| refused("a part lies outside of the image"))?;
        padding.into_iter().for_each(|part| arrival.take(part));
        let lane = self.ranges.of(&*flight.origin);
        let read = |(range, targets)| {
            self.fetch_range(flight, &lane, range, targets, Arc::clone(&arrival), deadline)
        };
        let mut reads: FuturesUnordered<_> = ranges.iter().zip(targets).map(read).collect();
        // From here on the reads have it alone: with the last one, spans end.
        drop(arrival);
        // One at a time: blocks that arrive together take turns.
        let mut spans = pin!(
            stream::unfold(spans, async |mut spans| {
                let span: Span = spans.recv().await?;
                let turn = if span.bytes() <= INLINE_BYTES {
                    None
                } else {
                    Some(self.turn(&self.digests, 1, flight).await)
                };
                Some(((span, turn), spans))
            })
            .fuse()
        );
        let mut digests = FuturesUnordered::new();
        let failed = loop {
            tokio::select! {
                Some(read) = reads.next() => if let Err(error) = read {
                    break Some(error);
                },
                Some((span, turn)) = spans.next() => match turn {
                    None => image.add(span.digest()),
                    Some(turn) => digests.push(tokio::task::spawn_blocking(move || {
                        let digested = span.digest();
                        drop(turn);
                        digested
                    })),
                },
                Some(digested) = digests.next() => match digested {
                    Ok(digested) => image.add(digested),
                    // The pool is gone: the runtime ends.
                    Err(_ended) => break Some(ReadError::Stopping),
                },
                else => break None,
            }
        };
        if let Some(error) = failed {
            // The first failure drops the other reads. The slot is free when it is told.
            reads.clear();
            while digests.next().await.is_some() {}
            return Err(error);
        }
        image.joined().ok_or_else(|| refused("not every byte of it came"))
    }

    async fn fetch_range(
        &self,
        flight: &Flight,
        lane: &Lane,
        range: &Range,
        mut targets: Vec<SlotPart>,
        arrival: Arc<Arrival>,
        deadline: Instant,
    ) -> Result<(), ReadError> {
        let _permit = self.turn(lane.gate(), 1, flight).await;
        let Range { object, offset, bytes, pieces } = range;
        let id = flight.fetch.id;
        let wanted: u64 = pieces.iter().map(|piece| piece.bytes).sum();
        let asked = Asked::of(&*flight.origin);
        let direct = if targets.len() == 1 && wanted == *bytes { targets.pop() } else { None };
        let read = if let Some(part) = direct {
            let mut into = Intake::new(arrival, part);
            flight.origin.read_into(object, *offset, &mut into, deadline).await.map(|()| None)
        } else {
            let bytes = usize::try_from(*bytes)
                .map_err(|_| ReadError::Fetch { id, problem: "larger than memory" })?;
            let mut collected = vec![0; bytes];
            let read = flight.origin.read_range(object, *offset, &mut collected, deadline).await;
            read.map(|()| Some((collected, arrival)))
        };
        let came = if read.is_ok() { *bytes } else { 0 };
        self.ranges.ended(lane, &*flight.origin, &asked, came);
        self.metrics.origin_request(read.as_ref().map(|_| *bytes).map_err(|e| e.kind()));
        let read = read.map_err(|source| ReadError::Origin { id, source })?;
        if let Some((collected, arrival)) = read {
            for (piece, mut target) in pieces.iter().zip(targets) {
                let from = usize::try_from(piece.from).ok();
                let piece = from.and_then(|from| collected.get(from..)?.get(..target.len()));
                let problem = "a piece lies outside of its range";
                target.bytes_mut().copy_from_slice(piece.ok_or(ReadError::Fetch { id, problem })?);
                arrival.take(target);
            }
            self.metrics.origin_dropped(bytes.saturating_sub(wanted));
        }
        Ok(())
    }
}
