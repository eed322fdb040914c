//! The devices that all processes share: a directory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FlockOperation, flock};

use crate::CudaError;
use crate::error::OUT_OF_MEMORY;

/// As an H200 has it.
pub(super) const GRANULARITY_BYTES: u64 = 2 << 20;

/// Where the memory lies, and how much there may be.
///
/// A file of memory is locked as long as someone has it: a lock belongs to what `open`
/// returned, which duplicated descriptors and mappings share, in whatever process, and
/// goes with the last of them.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) directory: PathBuf,
    pub(super) devices: u32,
    /// Of each.
    pub(super) bytes: u64,
}

/// Tells the files of one process apart.
static NEXT: AtomicU64 = AtomicU64::new(0);

impl Machine {
    /// What of a device's memory is in use.
    pub(super) fn used(&self, device: u32) -> Result<u64, CudaError> {
        let _alone = self.lock()?;
        self.count(device).map_err(failed)
    }

    /// Makes memory, rounded up to the granularity.
    pub(super) fn create(&self, device: u32, bytes: u64) -> Result<File, CudaError> {
        let out_of_memory = || CudaError::Call {
            call: "stand-in create",
            code: OUT_OF_MEMORY,
            name: "out of memory".to_owned(),
        };
        let bytes = bytes.max(1).checked_next_multiple_of(GRANULARITY_BYTES);
        let bytes = bytes.ok_or_else(out_of_memory)?;
        let _alone = self.lock()?;
        let used = self.count(device).map_err(failed)?;
        if used.checked_add(bytes).is_none_or(|used| used > self.bytes) {
            return Err(out_of_memory());
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("device{device}-{}-{number}", std::process::id());
        let made = || -> io::Result<File> {
            let mut options = OpenOptions::new();
            let file =
                options.read(true).write(true).create_new(true).open(self.directory.join(name))?;
            flock(&file, FlockOperation::LockShared)?;
            file.set_len(bytes)?;
            Ok(file)
        };
        made().map_err(failed)
    }

    /// Adds up what is in use, and removes what is not any more.
    fn count(&self, device: u32) -> io::Result<u64> {
        let mut used = 0u64;
        let prefix = format!("device{device}-");
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with(&prefix) {
                continue;
            }
            let file = File::open(entry.path())?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::remove_file(entry.path())?;
            } else {
                used = used.saturating_add(file.metadata()?.len());
            }
        }
        Ok(used)
    }

    /// Keeps all other processes out until the file is closed.
    fn lock(&self) -> Result<File, CudaError> {
        let locked = || -> io::Result<File> {
            let mut options = OpenOptions::new();
            let options = options.write(true).create(true).truncate(false);
            let file = options.open(self.directory.join("lock"))?;
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        locked().map_err(failed)
    }
}

fn failed(error: io::Error) -> CudaError {
    CudaError::system("a stand-in's directory", error)
}
