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
    /// Pieces of prefetches in flight.
    pub(super) prefetching: usize,
    pub(super) most_prefetches: usize,
    /// Prefetches whose files are being opened, and whether someone waits by now.
    pub(super) opening: Vec<(BlockId, bool)>,
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
        if self.prefetching >= self.most_prefetches {
            return None;
        }
        let task = self.prefetch.next(Urgency::Prefetch)?;
        match &task {
            Task::Read(_) => self.prefetching += 1,
            Task::Open(job, _) => self.opening.push((job.id, false)),
        }
        Some(task)
    }

    /// A file was opened, or could not be: whether someone waits for it by now.
    pub(super) fn opened(&mut self, id: &BlockId, urgency: Urgency) -> bool {
        let opening = self.opening.iter().position(|(opening, _)| opening == id);
        match opening.filter(|_| urgency == Urgency::Prefetch) {
            Some(at) => self.opening.swap_remove(at).1,
            None => urgency == Urgency::Demand,
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
