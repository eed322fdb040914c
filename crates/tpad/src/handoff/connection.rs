//! One worker's connection: the socket, its leases, and its slabs.
//!
//! Leases end with the worker, not with the daemon's wish: when a worker breaks the
//! protocol, or the daemon drains, it gets nothing more, and what it reads stays as it
//! is until its socket or its process ends.

mod calls;
mod end;
mod expected;
mod hello;
mod holder;
mod on_device;
mod refused;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Code;
use tpad_engine::Worker;
use tpad_hbm::SharedDeviceSlab;
use tpad_proto::handoff::v1::{self as wire, Failure, daemon_message, worker_message};
use tpad_proto::handoff::{FrameReader, FrameWriter};
use tpad_store::SharedSlab;

use self::calls::{Done, Queue};
use self::end::End;
use self::holder::Holder;
use super::metrics::Outcome;
use super::peer::{Credentials, Life};
use super::slabs::Slabs;
use super::{Shared, answer, would_block};

/// A worker's `Acquire`s that are worked on at a time; more are queued.
const CALLS: usize = 64;

/// What may wait to be sent: a worker that does not read its answers is not read
/// either.
const UNSENT_BYTES: usize = 4 << 20;

/// From connecting to `Hello`.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// From `Forget` to `Forgotten`: a worker that keeps slabs keeps others from memory.
const FORGET_PATIENCE: Duration = Duration::from_secs(10);

/// What a peer without leases gets to read why it is refused.
const FAREWELL: Duration = Duration::from_secs(1);

/// A connection.
pub(super) struct Connection {
    shared: Arc<Shared>,
    socket: UnixStream,
    peer: Credentials,
    connected: Instant,
    /// Why nothing is granted, from the start.
    refusal: Option<Failure>,
    reader: FrameReader,
    writer: FrameWriter,
    slabs: Slabs<SharedSlab>,
    device_slabs: Slabs<SharedDeviceSlab>,
    worker: Holder,
    calls: FuturesUnordered<BoxFuture<'static, Done>>,
    /// What is begun when a call is over.
    queue: Queue,
    wanted: watch::Receiver<u64>,
    /// The same of devices, where there are any.
    wanted_there: Option<watch::Receiver<u64>>,
}

impl Connection {
    pub(super) fn new(
        shared: Arc<Shared>,
        socket: UnixStream,
        peer: Credentials,
        refusal: Option<Failure>,
    ) -> Self {
        let wanted = shared.engine.hierarchy().dram().arena().watch_wanted();
        let wanted_there = shared.engine.device_memory().level().map(|it| it.watch_wanted());
        Self {
            shared,
            socket,
            peer,
            connected: Instant::now(),
            refusal,
            reader: FrameReader::of_worker(),
            writer: FrameWriter::to_worker(),
            slabs: Slabs::default(),
            device_slabs: Slabs::default(),
            worker: Holder::default(),
            calls: FuturesUnordered::new(),
            queue: Queue::default(),
            wanted,
            wanted_there,
        }
    }

    /// Serves the worker until it is gone; its leases end with the return, and with
    /// nothing else.
    pub(super) async fn run(mut self) -> Outcome {
        let outcome = self.serve_to_its_end().await;
        self.calls.clear();
        self.worker.end();
        outcome
    }

    async fn serve_to_its_end(&mut self) -> Outcome {
        let life = Life::of(self.peer);
        let served = tokio::select! {
            () = life.ended() => return Outcome::died,
            end = self.serve() => end,
        };
        let failure = match served {
            End::Gone(outcome) => return outcome,
            End::Refused(failure) => failure,
        };
        tracing::debug!(peer = %self.peer, why = failure.message, "a worker is refused");
        self.calls.clear();
        let Some(worker) = self.worker.get() else {
            // It holds nothing: what it has not read by then is lost.
            let _told = timeout(FAREWELL, self.refuse(failure)).await;
            return Outcome::refused;
        };
        worker.expect_nothing();
        tokio::select! {
            () = life.ended() => Outcome::died,
            () = self.refuse(failure) => Outcome::refused,
        }
    }

    async fn serve(&mut self) -> End {
        loop {
            if let Err(end) = self.turn().await {
                return end;
            }
        }
    }

    /// Does what there is to do, or waits for whatever comes first.
    async fn turn(&mut self) -> Result<(), End> {
        if let Some(refusal) = self.refusal.take() {
            return Err(End::Refused(refusal));
        }
        if self.shared.stop.is_cancelled() {
            return Err(End::Refused(answer::draining()));
        }
        if self.calls.len() < CALLS
            && let (Some(worker), Some(acquire)) = (self.worker.get(), self.queue.next())
        {
            let worker = Arc::clone(worker);
            return self.begin(worker, acquire);
        }
        // Whatever the calls wait for: it may be what this worker gives back.
        let reads = self.writer.bytes() < UNSENT_BYTES;
        if reads && let Some(message) = self.reader.next_message::<wire::WorkerMessage>()? {
            return self.take(message);
        }
        let writes = !self.writer.is_empty();
        let interest = match (reads, writes) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (true, false) => Interest::READABLE,
            // With nothing to write there is a call to wait for.
            (false, _) => Interest::WRITABLE,
        };
        let patience = self.patience();
        tokio::select! {
            () = self.shared.stop.cancelled() => {}
            () = until(patience.as_ref().map(|(until, _)| *until)) => {
                if let Some((_, failure)) = patience {
                    return Err(End::Refused(failure));
                }
            }
            ready = self.socket.ready(interest), if reads || writes => {
                let ready = ready?;
                if writes && ready.is_writable() {
                    self.flush()?;
                }
                if reads && (ready.is_readable() || ready.is_read_closed()) {
                    self.read()?;
                }
            }
            () = overdrawn(self.worker.get()) => {
                return Err(End::Refused(answer::holds_too_much()));
            }
            Some(done) = self.calls.next(), if !self.calls.is_empty() => self.finish(done)?,
            // The arena lives as long as the engine, which is shared.
            Ok(()) = self.wanted.changed() => self.ask_for_slabs()?,
            () = changed(self.wanted_there.as_mut()) => self.ask_for_slabs()?,
        }
        Ok(())
    }

    /// Until when something has to come of the worker, and what it is told after that.
    fn patience(&self) -> Option<(Instant, Failure)> {
        if self.worker.get().is_none() {
            let late = answer::refused(Code::DeadlineExceeded, "HELLO_LATE", "no Hello came");
            return Some((self.connected + HELLO_PATIENCE, late));
        }
        let asked = [self.slabs.asked_since(), self.device_slabs.asked_since()];
        let asked = asked.into_iter().flatten().min()?;
        Some((asked + FORGET_PATIENCE, answer::kept_slabs()))
    }

    /// Sends what the socket takes.
    fn flush(&mut self) -> Result<(), End> {
        let (socket, writer) = (&self.socket, &mut self.writer);
        let flushed = socket.try_io(Interest::WRITABLE, || writer.flush(socket));
        match flushed {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Takes what the socket has, and works on it.
    fn read(&mut self) -> Result<(), End> {
        let (socket, reader) = (&self.socket, &mut self.reader);
        let filled = socket.try_io(Interest::READABLE, || reader.fill(socket));
        match would_block(filled)? {
            None => Ok(()),
            Some(false) => Err(End::Gone(Outcome::closed)),
            Some(true) => Ok(()),
        }
    }

    fn take(&mut self, message: wire::WorkerMessage) -> Result<(), End> {
        use worker_message::Message;
        let wrong = |what: &str| End::Refused(answer::invalid(what));
        let message = message.message.ok_or_else(|| wrong("a message of no known kind"))?;
        match (self.worker.get(), message) {
            (None, Message::Hello(hello)) => self.hello(hello),
            (None, _) => Err(wrong("the first message is Hello")),
            (Some(_), Message::Hello(_)) => Err(wrong("a second Hello")),
            (Some(_), Message::Acquire(acquire)) => match self.queue.add(acquire) {
                Ok(()) => Ok(()),
                Err(call) => self.fail(call, answer::too_many_calls()),
            },
            (Some(worker), Message::Expect(expect)) => {
                self.shared.expect(worker, expect);
                Ok(())
            }
            (Some(worker), Message::Release(release)) => {
                worker.release(&release.leases);
                // One of them may have been the last of a slab that is wanted.
                self.ask_for_slabs()
            }
            (Some(_), Message::Forgotten(forgotten)) => {
                self.slabs.given_up(&forgotten.slabs);
                self.device_slabs.given_up(&forgotten.device_slabs);
                Ok(())
            }
        }
    }

    fn send(
        &mut self,
        message: daemon_message::Message,
        descriptors: Vec<std::os::fd::OwnedFd>,
    ) -> Result<(), End> {
        let message = wire::DaemonMessage { message: Some(message) };
        Ok(self.writer.push(&message, descriptors)?)
    }

    /// Asks for slabs whose memory is wanted for something else.
    fn ask_for_slabs(&mut self) -> Result<(), End> {
        let Some(worker) = self.worker.get() else { return Ok(()) };
        let slabs = self.slabs.ask_back(|slab| worker.uses(slab));
        let device_slabs = self.device_slabs.ask_back(|slab| worker.uses_on_device(slab));
        if slabs.is_empty() && device_slabs.is_empty() {
            return Ok(());
        }
        let forget = wire::Forget { slabs, device_slabs };
        self.send(daemon_message::Message::Forget(forget), Vec::new())?;
        self.flush()
    }
}

/// Waits until the worker keeps on holding more than it may.
async fn overdrawn(worker: Option<&Arc<Worker>>) {
    match worker {
        Some(worker) => worker.overdrawn().await,
        None => std::future::pending().await,
    }
}

/// Waits for a change of what is wanted, if there is anything that may be.
async fn changed(wanted: Option<&mut watch::Receiver<u64>>) {
    if let Some(wanted) = wanted
        && wanted.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Waits until then, or for ever.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => sleep_until(then).await,
        None => std::future::pending().await,
    }
}
