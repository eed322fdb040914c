//! Filling one block: a turn, memory, bytes, proof.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tpad_manifest::BlockId;

use super::flight::{Flight, Purpose, Stage};
use super::guarded::Outcome;
use super::verify::{Wrong, verify};
use super::{Inner, ReadError, Served};
use crate::dram::RoomError;
use crate::gate::{Gate, Permit};
use crate::level::{Check, LevelRead};
use crate::{BlockBytes, BlockFetch, Medium, SlotMut, Urgency};

impl Inner {
    /// Fills the flight's block. Waiting for a turn and for memory ends when the
    /// last caller's deadline has passed; a fill that has memory goes on to its
    /// end, callers or not, since its bytes are worth keeping.
    pub(super) async fn fill(&self, flight: &Flight) -> Result<Served, ReadError> {
        let started = Instant::now();
        let fetch = &flight.fetch;
        let id = fetch.id;
        fetch.check().map_err(|problem| ReadError::Fetch { id, problem })?;
        let capacity = self.dram.arena().usage().capacity;
        let slot_bytes = self.dram.arena().slot_bytes(fetch.bytes).ok_or(ReadError::TooLarge {
            id,
            bytes: fetch.bytes,
            capacity,
        })?;
        flight.set_stage(Stage::Queued);
        let _turn = tokio::select! {
            turn = self.turn(&self.fills, slot_bytes, flight) => turn,
            () = flight.expired() => return Err(ReadError::Deadline { id }),
        };
        let slot = self.room(flight).await?;
        flight.set_stage(Stage::Filling);
        let limit = self.tuning.max_fill_time;
        let filled = timeout_at(Instant::now() + limit, self.fill_slot(flight, slot, limit)).await;
        let (slot, medium) = filled.unwrap_or(Err(ReadError::Slow { id, limit }))?;
        let bytes = slot.freeze();
        self.keep(fetch, &bytes, medium, flight.wishes().purpose);
        self.metrics.filled(started.elapsed());
        let arena = self.dram.arena().usage();
        self.metrics.memory(arena.mapped, self.dram_bytes());
        Ok(Served { bytes, medium })
    }

    /// Places in a gate, as urgent as the flight is by then.
    pub(super) async fn turn(&self, gate: &Arc<Gate>, places: u64, flight: &Flight) -> Permit {
        if flight.wishes().urgency == Urgency::Prefetch {
            tokio::select! {
                permit = gate.enter(places, Urgency::Prefetch) => return permit,
                () = flight.demanded() => {}
            }
        }
        gate.enter(places, Urgency::Demand).await
    }

    /// A slot for the flight's block.
    pub(super) async fn room(&self, flight: &Flight) -> Result<SlotMut, ReadError> {
        let BlockFetch { id, bytes, ref class, .. } = *flight.fetch;
        flight.set_stage(Stage::Room);
        let room = self.dram.room(bytes, class, flight.wishes().urgency);
        let room = tokio::select! {
            room = room => room,
            () = flight.expired() => Err(RoomError::InUse),
        };
        room.map_err(|error| match error {
            RoomError::TooLarge => {
                let capacity = self.dram.arena().usage().capacity;
                ReadError::TooLarge { id, bytes, capacity }
            }
            RoomError::InUse => self.no_room(id, bytes),
            RoomError::System(error) => ReadError::Memory { id, problem: error.to_string() },
        })
    }

    /// The error of a read for which no memory came free.
    pub(super) fn no_room(&self, id: BlockId, bytes: u64) -> ReadError {
        let usage = self.dram.arena().usage();
        let leased = usage.held.saturating_sub(self.dram_bytes());
        ReadError::NoRoom { id, bytes, leased, capacity: usage.capacity }
    }

    /// Fills a slot from the fastest place that has the block.
    async fn fill_slot(
        &self,
        flight: &Flight,
        mut slot: SlotMut,
        limit: Duration,
    ) -> Result<(SlotMut, Medium), ReadError> {
        let id = flight.fetch.id;
        for level in &self.lower {
            let medium = level.medium();
            if !level.offers(&id) {
                self.metrics.level_missed(medium);
                continue;
            }
            let (urgency, demanded) = (flight.wishes().urgency, flight.demanded());
            match level.read(&id, slot, urgency, demanded).await {
                Outcome::Read(LevelRead::Hit { slot: read, check }) => {
                    match self.verify(flight, check, read).await? {
                        Ok(right) => {
                            self.metrics.level_hit(medium, flight.fetch.bytes);
                            return Ok((right, medium));
                        }
                        Err(wrong) => {
                            self.metrics.level_missed(medium);
                            self.metrics.verify_failed(medium);
                            level.remove(&id).await;
                            slot = wrong.slot;
                        }
                    }
                }
                Outcome::Read(LevelRead::Miss(unused)) => {
                    self.metrics.level_missed(medium);
                    slot = unused;
                }
                Outcome::Broke => {
                    self.metrics.level_missed(medium);
                    // The old slot comes free when the level lets go of it.
                    slot = self.room(flight).await?;
                    flight.set_stage(Stage::Filling);
                }
            }
        }
        self.fill_from_origin(flight, slot, Instant::now() + limit).await
    }

    async fn verify(
        &self,
        flight: &Flight,
        check: Check,
        slot: SlotMut,
    ) -> Result<Result<SlotMut, Wrong>, ReadError> {
        let urgency = flight.wishes().urgency;
        match verify(&self.digests, flight.fetch.id, check, urgency, slot).await {
            Ok(right) => Ok(Ok(right)),
            Err(Some(wrong)) => Ok(Err(wrong)),
            Err(None) => Err(ReadError::Stopping),
        }
    }

    /// Keeps a block in host memory now, and offers it to the levels that were
    /// asked before the one that had it, later. What is read for such a level alone
    /// is left to whoever reads it.
    fn keep(&self, fetch: &BlockFetch, bytes: &BlockBytes, from: Medium, purpose: Purpose) {
        if purpose == Purpose::Lower {
            return;
        }
        if self.dram.keep(&fetch.id, &fetch.class, bytes, purpose == Purpose::Guess) {
            self.metrics.level_written(Medium::Dram);
        } else {
            self.metrics.level_write_dropped(Medium::Dram);
        }
        for level in self.lower.iter().take_while(|level| level.medium() != from) {
            if level.rests() || level.level().contains(&fetch.id) {
                continue;
            }
            let pages =
                super::pages_of(bytes.padded().len() as u64).min(self.most_level_write_pages);
            let memory = Arc::clone(&self.level_write_pages).try_acquire_many_owned(pages);
            let Ok(memory) = memory else {
                self.metrics.level_write_dropped(level.medium());
                continue;
            };
            let turn = Arc::clone(&self.level_writes);
            let (level, bytes) = (Arc::clone(level), bytes.clone());
            let (id, class) = (fetch.id, fetch.class.clone());
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                let write = async {
                    let _turn = turn.acquire_owned().await;
                    level.admit(&id, &class, &bytes).await;
                };
                tokio::select! {
                    () = write => {}
                    () = stop.cancelled() => {}
                }
                drop(memory);
            });
        }
    }
}
