//! A GPU of this process, on which blocks are acquired.

use std::fmt;
use std::sync::Arc;
use std::thread;

use tpad_cuda::{CudaError, Device, DeviceName, Driver, Reaper};

use crate::Error;

/// A device that this process has open, and what it gives back when the device's work is
/// done: blocks of [`Handoff::acquire_on`](crate::Handoff::acquire_on). Clones share it.
/// One for each device will do for a process.
///
/// With CUDA it is open in its primary context, which PyTorch uses, too. CUDA does not
/// survive `fork`: a child has to open it by `spawn` or `exec`, and what a forked child
/// inherited it can only drop, which changes nothing.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    /// Until drop.
    reaper: Option<Reaper>,
    device: Arc<dyn Device>,
    uuid: String,
    /// The process that opened it.
    process: u32,
}

impl Gpu {
    /// Opens a device by its index among those that this process sees (`0`), or by its
    /// UUID (`GPU-...`) or the beginning of that. Looks for NVIDIA's driver, and makes the
    /// device's context if there is none yet: blocks for up to a second.
    ///
    /// # Errors
    /// [`Error::NoGpu`], which says what is missing.
    pub fn open(name: &str) -> Result<Self, Error> {
        let driver = tpad_cuda::cuda().map_err(|reason| none(name, &reason))?;
        Self::on(&driver, name)
    }

    /// Opens a device of this driver: in tests, of the
    /// [`StandIn`](tpad_cuda::StandIn), which is no GPU.
    ///
    /// # Errors
    /// [`Error::NoGpu`], which says what is missing.
    pub fn on(driver: &Arc<dyn Driver>, name: &str) -> Result<Self, Error> {
        let Ok(device) = name.parse::<DeviceName>();
        let device = driver.open(&device).map_err(|error| none(name, &error))?;
        let facts = device.facts();
        if !facts.exports {
            // What cannot be exported cannot be imported.
            return Err(none(name, &CudaError::NoExport { index: facts.index }));
        }
        let uuid = facts.uuid.to_string();
        let reaper = Some(Reaper::new(&device).map_err(|error| none(name, &error))?);
        Ok(Self(Arc::new(Inner { reaper, device, uuid, process: std::process::id() })))
    }

    /// Its identity, the same in every process: `GPU-...`.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.0.uuid
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.0.device
    }

    /// Blocks that were dropped and are not given back yet: the device works.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.0.reaper.as_ref().map_or(0, Reaper::pending)
    }

    /// Waits until every block that was dropped so far is given back. Blocks the thread,
    /// for as long as the work that was submitted before the last drop takes.
    pub fn drain(&self) {
        if let Some(reaper) = &self.0.reaper {
            reaper.drain();
        }
    }

    /// Drops `what` when the work that was submitted by now has completed. Does not block.
    pub(crate) fn give_up(&self, what: impl Send + 'static) {
        match &self.0.reaper {
            Some(reaper) if self.0.is_here() => reaper.give_up(what),
            // A child: its parent gives it up, and the driver is not to be called.
            _ => std::mem::forget(what),
        }
    }

    /// The error of a call of the driver.
    pub(crate) fn failed(&self, error: CudaError) -> Error {
        Error::Gpu { gpu: self.0.uuid.clone(), error }
    }
}

impl Inner {
    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(reaper) = self.reaper.take() else { return };
        if !self.is_here() {
            // The reaper's thread is not there, and the context is not this process's.
            std::mem::forget((reaper, Arc::clone(&self.device)));
            return;
        }
        // Its end waits for the device, and whoever drops the last block may be a task. If
        // the system has no thread for that, the closure is dropped here, and waits here.
        let end = thread::Builder::new().name("gpu-end".to_owned());
        let _started = end.spawn(move || drop(reaper));
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { uuid, reaper, .. } = &*self.0;
        f.debug_struct("Gpu").field("uuid", uuid).field("reaper", reaper).finish_non_exhaustive()
    }
}

fn none(gpu: &str, reason: &dyn fmt::Display) -> Error {
    Error::NoGpu { gpu: gpu.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use tpad_cuda::{Memory, StandIn};

    use super::*;
    use crate::Kind;

    #[test]
    fn a_device_that_is_not_there_is_named_with_those_that_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let driver = StandIn::on(directory.path(), 1, 4 << 20);
        let gpu = Gpu::on(&driver, "0").expect("it is there");
        let again = Gpu::on(&driver, gpu.uuid()).expect("by its identity");
        assert_eq!(gpu.uuid(), again.uuid());
        let missing = Gpu::on(&driver, "1").expect_err("there is one");
        assert_eq!(missing.kind(), Kind::FailedPrecondition);
        let text = missing.to_string();
        assert!(text.contains("\"1\"") && text.contains("stand-in"), "{text}");
    }

    #[test]
    fn what_is_given_up_outlasts_the_work_and_the_last_handle() {
        struct Told(std::sync::mpsc::SyncSender<()>);
        impl Drop for Told {
            fn drop(&mut self) {
                self.0.send(()).expect("it is awaited");
            }
        }
        let directory = tempfile::tempdir().expect("a directory");
        let gpu = Gpu::on(&StandIn::on(directory.path(), 1, 4 << 20), "0").expect("it is there");
        let slab: Arc<dyn Memory> = gpu.device().create(4096).expect("there is room");
        let delay = Duration::from_millis(100);
        let late = gpu.device().read_late(&slab, 0, 4096, delay).expect("it starts");
        let (told, gone) = sync_channel(1);
        gpu.give_up(Told(told));
        drop(gpu);
        gone.recv().expect("it is dropped, not forgotten");
        assert!(late.is_done().expect("it ran"));
    }
}
