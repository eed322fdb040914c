//! What a handle, its leases and its task share.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tokio::sync::{Notify, mpsc, oneshot};
use tpad_proto::handoff::v1 as wire;

use super::{Acquired, AcquiredOn};
use crate::{Error, Gpu, Refusal};

/// One connection, as handles and leases hold it. With the last of them it closes.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    pub(super) asks: mpsc::Sender<Ask>,
    /// Keeps the connection open: whatever becomes of the task and its runtime, no lease
    /// may end before the blocks that it names are let go of.
    pub(super) socket: OwnedFd,
    /// The process that connected: children share the socket, and end nothing.
    pub(super) process: u32,
}

/// What the task has of it.
#[derive(Debug, Default)]
pub(super) struct Shared {
    address: String,
    /// Leases that are over, and not told yet.
    ended: Mutex<Vec<u64>>,
    pub(super) woken: Notify,
    /// Whether the daemon was told last that something is likely to be asked for.
    pub(super) expects: Mutex<bool>,
    /// Why the daemon grants nothing more.
    over: OnceLock<Over>,
}

/// What the task is to send.
#[derive(Debug)]
pub(super) enum Ask {
    /// A call, which is answered.
    Acquire(Call),
    /// What is likely to be asked for next. There is no answer.
    Expect(wire::Expect),
}

/// An `Acquire` to send, and who waits for what comes of it.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) message: wire::Acquire,
    /// Weak: a call that the task leaves in its channel, because its runtime ended while this
    /// was sent, would keep the channel, itself and the connection for ever.
    pub(super) link: Weak<Link>,
    pub(super) answer: Answer,
}

/// Who waits for an answer, by where the blocks are wanted.
#[derive(Debug)]
pub(super) enum Answer {
    /// In host memory.
    Host(oneshot::Sender<Result<Acquired, Error>>),
    /// In a device's.
    Device(Gpu, oneshot::Sender<Result<AcquiredOn, Error>>),
}

/// Why a daemon grants nothing more.
#[derive(Clone, Debug)]
pub(super) enum Over {
    /// It said so.
    Refused(Refusal),
    /// It is gone, or makes no sense.
    Lost(String),
}

/// A lease. Dropped, it is given back.
#[derive(Debug)]
pub(super) struct Lease {
    number: u64,
    link: Arc<Link>,
}

impl Shared {
    pub(super) fn new(address: String) -> Arc<Self> {
        Arc::new(Self { address, ..Self::default() })
    }

    /// Leases that are over since this was asked last.
    pub(super) fn ended(&self) -> Vec<u64> {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The first reason stays.
    pub(super) fn set_over(&self, over: Over) {
        let _later = self.over.set(over);
    }

    /// Whether it grants nothing more.
    pub(super) fn is_over(&self) -> bool {
        self.over.get().is_some()
    }

    /// The error of whoever asks after it is over.
    pub(super) fn over(&self) -> Option<Error> {
        self.over.get().map(|over| match over.clone() {
            Over::Refused(refusal) => Error::Refused(Box::new(refusal)),
            Over::Lost(reason) => Error::Disconnected { address: self.address.clone(), reason },
        })
    }

    /// The error of a call whose task is gone without a word, with its runtime.
    pub(super) fn lost(&self) -> Error {
        let address = self.address.clone();
        let reason = "the runtime of this handoff has ended".to_owned();
        self.over().unwrap_or(Error::Disconnected { address, reason })
    }
}

impl Answer {
    /// As `Acquire` names it.
    pub(super) fn device(&self) -> &str {
        match self {
            Self::Host(_) => "",
            Self::Device(gpu, _) => gpu.uuid(),
        }
    }

    /// Nothing is acquired. Whoever asked may have gone.
    pub(super) fn fail(self, error: Error) {
        let _gone = match self {
            Self::Host(answer) => answer.send(Err(error)).is_err(),
            Self::Device(_, answer) => answer.send(Err(error)).is_err(),
        };
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // A child that was forked may have the socket: the leases end with this one.
            // It may have been closed from the other side.
            let _closed = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        }
    }
}

impl Lease {
    pub(super) fn new(number: u64, link: &Arc<Link>) -> Self {
        Self { number, link: Arc::clone(link) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let shared = &self.link.shared;
        shared.ended.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
        shared.woken.notify_one();
    }
}
