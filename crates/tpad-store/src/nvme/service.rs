//! Whether the level is in service: opening its directory, and pausing writes
//! that the disk refuses. It comes back by itself.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::disk::Disk;
use super::reader::NvmeIo;

/// How long nothing is written after the disk refused it; it doubles from there.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The directory and its state.
#[derive(Debug)]
pub(super) struct Service {
    path: PathBuf,
    io: NvmeIo,
    /// One opens it at a time. Apart from the state, which must be readable while
    /// a disk hangs.
    opening: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    disk: Option<Arc<Disk>>,
    /// Why nothing is written at present.
    problem: Option<String>,
    paused_until: Option<Instant>,
    pause: Duration,
}

impl Service {
    pub(super) fn new(path: PathBuf, io: NvmeIo) -> Self {
        Self { path, io, opening: Mutex::default(), state: Mutex::default() }
    }

    /// The directory, if it was opened.
    pub(super) fn disk(&self) -> Option<Arc<Disk>> {
        self.lock().disk.clone()
    }

    /// Opens the directory, unless it is open. Says whether it was this call that
    /// did it. To be called where blocking is allowed.
    pub(super) fn open(&self) -> io::Result<(Arc<Disk>, bool)> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(disk) = self.disk() {
            return Ok((disk, false));
        }
        let disk = Arc::new(Disk::open(&self.path, self.io)?);
        self.lock().disk = Some(Arc::clone(&disk));
        let files = if disk.is_direct() { "direct" } else { "buffered" };
        let (path, io) = (self.path.display(), disk.reader().way().as_str());
        match disk.fallback() {
            // Whoever asked for it by name wants to know; nobody is served better by a
            // daemon that does not start.
            Some(reason) if self.io == NvmeIo::IoUring => {
                tracing::warn!(level = "nvme", %path, io, files, reason, "levels.nvme.io is not to be had");
            }
            reason => {
                tracing::info!(level = "nvme", %path, io, files, reason, "cache directory opened");
            }
        }
        Ok((disk, true))
    }

    /// Whether writing may be tried.
    pub(super) fn may_write(&self) -> bool {
        self.lock().paused_until.is_none_or(|until| Instant::now() >= until)
    }

    /// Why nothing is written at present.
    pub(super) fn problem(&self) -> Option<String> {
        self.lock().problem.clone()
    }

    /// The disk took a block.
    pub(super) fn wrote(&self) {
        let mut state = self.lock();
        state.paused_until = None;
        state.pause = Duration::ZERO;
        if let Some(problem) = state.problem.take() {
            drop(state);
            tracing::info!(level = "nvme", problem, "blocks are written again");
        }
    }

    /// The disk did not take a block: it is left alone for a while.
    pub(super) fn refused(&self, problem: String) {
        let mut state = self.lock();
        state.pause = (state.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        state.paused_until = Some(Instant::now() + state.pause);
        let first = state.problem.is_none();
        state.problem = Some(problem.clone());
        drop(state);
        if first {
            let path = self.path.display();
            tracing::warn!(level = "nvme", %path, problem, "nothing is written for now");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error says that nothing can be written, rather than that the disk
/// is broken.
pub(super) fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::FileTooLarge
    )
}
