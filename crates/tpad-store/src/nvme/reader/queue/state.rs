//! What waits to be handed out, in two lines, and what is out.

use std::collections::VecDeque;

use tpad_manifest::BlockId;

use super::Task;
use crate::Urgency;
use crate::nvme::reader::block::{Job, Piece};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) demand: Line,
    pub(super) prefetch: Line,
    /// Prefetches whose files are being opened.
    pub(super) opening: Out,
    /// Pieces of prefetches in flight.
    pub(super) flying: Out,
    pub(super) most_prefetches: usize,
    /// Which workers with a bell found nothing when they last came by.
    pub(super) hungry: Vec<bool>,
    /// Why no ring reads any more, if one failed.
    pub(super) failed: Option<String>,
    pub(super) closed: bool,
}

#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) pieces: VecDeque<Piece>,
    pub(super) jobs: VecDeque<Job>,
}

/// What was handed out for prefetches, and whether someone waits for its block by now.
#[derive(Debug, Default)]
pub(super) struct Out(Vec<(BlockId, bool)>);

impl State {
    pub(super) fn line(&mut self, urgency: Urgency) -> &mut Line {
        match urgency {
            Urgency::Demand => &mut self.demand,
            Urgency::Prefetch => &mut self.prefetch,
        }
    }

    pub(super) fn take(&mut self) -> Option<Task> {
        if let Some(task) = self.demand.next(Urgency::Demand) {
            return Some(task);
        }
        if self.flying.0.len() >= self.most_prefetches {
            return None;
        }
        let task = self.prefetch.next(Urgency::Prefetch)?;
        match &task {
            Task::Read(piece) => self.flying.0.push((*piece.id(), false)),
            Task::Open(job, _) => self.opening.0.push((job.id, false)),
        }
        Some(task)
    }
}

impl Out {
    /// Someone waits for this block now.
    pub(super) fn hurry(&mut self, id: &BlockId) {
        self.0.iter_mut().filter(|(out, _)| out == id).for_each(|(_, hurried)| *hurried = true);
    }

    /// Something is back that was handed out: how urgent it is by now.
    pub(super) fn back(&mut self, id: &BlockId, urgency: Urgency) -> Urgency {
        let out = self.0.iter().position(|(out, _)| out == id);
        match out.filter(|_| urgency == Urgency::Prefetch) {
            Some(at) if self.0.swap_remove(at).1 => Urgency::Demand,
            _ => urgency,
        }
    }
}

impl Line {
    fn next(&mut self, urgency: Urgency) -> Option<Task> {
        if let Some(mut piece) = self.pieces.pop_front() {
            piece.urgency = urgency;
            return Some(Task::Read(piece));
        }
        loop {
            let job = self.jobs.pop_front()?;
            if !job.is_forsaken() {
                return Some(Task::Open(job, urgency));
            }
        }
    }
}

/// How many of the pieces in flight may be prefetches.
pub(super) fn prefetches_of(in_flight: usize) -> usize {
    (in_flight / 2).max(1)
}

/// Moves what fits to the end of another queue, in order.
pub(super) fn move_all<T>(from: &mut VecDeque<T>, to: &mut VecDeque<T>, fits: impl Fn(&T) -> bool) {
    if !from.iter().any(&fits) {
        return;
    }
    for item in std::mem::take(from) {
        if fits(&item) { to.push_back(item) } else { from.push_back(item) }
    }
}
