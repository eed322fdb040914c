//! The task of a connection: the only one that reads its socket and writes to it.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tpad_proto::handoff::v1::{self as wire, daemon_message, worker_message};
use tpad_proto::handoff::{FrameError, FrameReader, FrameWriter, PROTOCOL};

use super::directories::Directories;
use super::held::{Guard, HeldBlock};
use super::link::{Ask, Lease, Link, Over, Shared};
use super::slabs::Slabs;
use super::{Acquired, DaemonSide, Handoff, HandoffOptions};
use crate::{Error, PlacedBlock, Refusal};

/// From connecting to the daemon's first word.
const WELCOME_PATIENCE: Duration = Duration::from_secs(10);

/// What may wait to be sent before calls wait.
const UNSENT_BYTES: usize = 1 << 20;

/// Leases that one `Release` names: some 40 KiB.
const RELEASED: usize = 4096;

/// What leases begin at multiples of: tensors are on 256 bytes of their image, and their
/// readers count on the same in memory.
const PAGE_BYTES: usize = 4096;

/// The socket and what has been said on it.
struct Task {
    socket: UnixStream,
    reader: FrameReader,
    writer: FrameWriter,
    slabs: Arc<Slabs>,
    directories: Arc<Directories>,
    shared: Arc<Shared>,
    asks: mpsc::Receiver<Ask>,
    /// Calls that are not answered yet, with their models.
    calls: HashMap<u64, (Ask, String)>,
    next_call: u64,
}

/// Connects, says hello and starts the task.
pub(super) async fn connect(
    path: PathBuf,
    options: HandoffOptions,
    asks: mpsc::Sender<Ask>,
    received: mpsc::Receiver<Ask>,
) -> Result<Handoff, Error> {
    let address = format!("unix://{}", path.display());
    let failed = |error: io::Error| Error::Connect {
        address: address.clone(),
        reason: format!("{error} (a daemon has this socket unless [handoff] turns it off)"),
    };
    let socket = UnixStream::connect(&path).await.map_err(failed)?;
    let kept = socket.as_fd().try_clone_to_owned().map_err(failed)?;
    let shared = Shared::new(address);
    let slabs = Slabs::new(&shared);
    let directories = Directories::new(&slabs);
    let mut task = Task {
        socket,
        reader: FrameReader::of_daemon(),
        writer: FrameWriter::to_daemon(),
        slabs,
        directories: Arc::clone(&directories),
        shared: Arc::clone(&shared),
        asks: received,
        calls: HashMap::new(),
        next_call: 1,
    };
    let welcomed = timeout(WELCOME_PATIENCE, task.hello(options)).await;
    let daemon = welcomed.map_err(|_| Error::Deadline { after: WELCOME_PATIENCE })??;
    directories.set_most(daemon.lease_bytes);
    tokio::spawn(task.run());
    let link = Link { shared, asks, socket: kept, process: std::process::id() };
    Ok(Handoff { link: Arc::new(link), directories, daemon })
}

impl Task {
    async fn hello(&mut self, options: HandoffOptions) -> Result<DaemonSide, Error> {
        let HandoffOptions { worker, directories } = options;
        let program = || std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        let worker = worker.unwrap_or_else(program).trim().to_owned();
        let hello = wire::Hello { protocol: PROTOCOL, worker, directories };
        self.send(worker_message::Message::Hello(hello))?;
        loop {
            self.exchange().await?;
            match self.next()? {
                None => {}
                Some(daemon_message::Message::Welcome(welcome)) => return daemon(&welcome),
                Some(daemon_message::Message::Refused(refused)) => {
                    return Err(Error::Refused(Box::new(refusal(refused.failure))));
                }
                Some(_) => return Err(Error::protocol("handoff", "the first word is no welcome")),
            }
        }
    }

    /// Runs until nobody holds the connection any more, or the daemon is gone.
    async fn run(mut self) {
        while let Some(turn) = self.turn().await {
            if let Err(error) = turn {
                // What is held stays valid: nothing is unmapped that is still read, and the
                // connection is closed by whoever drops the last of it.
                self.end(Over::Lost(error.to_string()));
                return;
            }
        }
    }

    /// One event; `None` when nobody holds the connection any more.
    async fn turn(&mut self) -> Option<Result<(), Error>> {
        let takes = self.writer.bytes() < UNSENT_BYTES;
        tokio::select! {
            ask = self.asks.recv(), if takes => Some(self.ask(ask?)),
            () = self.shared.woken.notified() => Some(self.release()),
            exchanged = exchange(&self.socket, &mut self.reader, &mut self.writer) => {
                Some(exchanged.map_err(|error| self.broken(&error)).and_then(|()| self.take()))
            }
        }
    }

    /// Sends a call, or answers it where the daemon would not.
    fn ask(&mut self, mut ask: Ask) -> Result<(), Error> {
        if let Some(error) = self.shared.over() {
            // Whoever asked may have gone.
            let _ = ask.answer.send(Err(error));
            return Ok(());
        }
        let call = self.next_call;
        self.next_call += 1;
        ask.message.call = call;
        let message = std::mem::take(&mut ask.message);
        let model = message.model.clone();
        if let Err(error) = self.send(worker_message::Message::Acquire(message)) {
            let _ = ask.answer.send(Err(error));
            return Ok(());
        }
        self.calls.insert(call, (ask, model));
        Ok(())
    }

    /// Tells of leases that are over, and of slabs that nothing reads any more.
    fn release(&mut self) -> Result<(), Error> {
        for leases in self.shared.ended().chunks(RELEASED) {
            let release = wire::Release { leases: leases.to_vec() };
            self.send(worker_message::Message::Release(release))?;
        }
        let slabs = self.slabs.forgotten();
        if !slabs.is_empty() {
            self.send(worker_message::Message::Forgotten(wire::Forgotten {
                slabs,
                ..Default::default()
            }))?;
        }
        Ok(())
    }

    /// Works on what has come.
    fn take(&mut self) -> Result<(), Error> {
        use daemon_message::Message;
        while let Some(message) = self.next()? {
            match message {
                Message::Acquired(acquired) => self.acquired(acquired)?,
                Message::Forget(forget) => {
                    self.slabs.forget(&forget.slabs);
                    self.release()?;
                }
                Message::Refused(refused) => self.end(Over::Refused(refusal(refused.failure))),
                Message::Welcome(_) => {
                    return Err(Error::protocol("handoff", "a second welcome"));
                }
            }
        }
        Ok(())
    }

    /// An answer. Whatever is wrong with it, its leases are given back.
    fn acquired(&mut self, acquired: wire::Acquired) -> Result<(), Error> {
        let wire::Acquired { call, revision, generation, outcomes, failure, slabs, directory } =
            acquired;
        let cells = directory.as_ref().is_some_and(|directory| directory.cells);
        let named = slabs.len() + usize::from(cells) + 2 * usize::from(directory.is_some());
        let mut descriptors = self.reader.descriptors(named).map_err(framed)?.into_iter();
        for (slab, descriptor) in slabs.iter().zip(&mut descriptors) {
            self.slabs.map(slab, descriptor)?;
        }
        let Some((Ask { link, answer, .. }, model)) = self.calls.remove(&call) else {
            return Err(Error::protocol("handoff", format!("an answer to no call: {call}")));
        };
        if directory.is_some() {
            let cells = if cells { descriptors.next() } else { None };
            if let (Some(directory), Some(uses)) = (descriptors.next(), descriptors.next()) {
                let of = (revision, generation);
                self.directories.watch(&model, of, cells, [directory, uses]);
            }
        }
        let answered = match failure {
            Some(failure) => Err(Error::Refused(Box::new(refusal(Some(failure))))),
            None => {
                let mut known = Vec::new();
                let blocks =
                    outcomes.into_iter().map(|it| self.block(it, &link, &mut known)).collect();
                self.directories.learn(&model, generation, known.into_iter());
                Ok(Acquired { revision, generation, blocks })
            }
        };
        // Who asked may have gone: then the blocks are dropped here.
        let _ = answer.send(answered);
        Ok(())
    }

    fn block(
        &self,
        outcome: wire::Outcome,
        link: &Arc<Link>,
        known: &mut Vec<(u32, Arc<PlacedBlock>)>,
    ) -> Result<HeldBlock, Error> {
        use wire::outcome::Outcome;
        let wrong = |what: &str| Error::protocol("handoff", what);
        let lease = match outcome.outcome.ok_or_else(|| wrong("an outcome of no known kind"))? {
            Outcome::Lease(lease) => lease,
            Outcome::Failure(failure) => {
                return Err(Error::Refused(Box::new(refusal(Some(failure)))));
            }
        };
        let wire::Lease { lease, slab, offset, block, ordinal } = lease;
        // First: from here on it is given back.
        let guard = Guard::Lease(Lease::new(lease, link));
        let slab = self.slabs.get(slab).ok_or_else(|| wrong("a lease in no slab"))?;
        let block = block.ok_or_else(|| wrong("a lease of no block"))?;
        let start = usize::try_from(offset).map_err(|_| wrong("a lease beyond memory"))?;
        if start % PAGE_BYTES != 0 {
            return Err(wrong("a lease that begins within a page"));
        }
        let block = Arc::new(crate::stream::placed_block(block, 0)?);
        let medium = block.medium;
        let held = HeldBlock::new(Arc::clone(&block), start, slab, medium, guard)
            .ok_or_else(|| wrong("a lease beyond the end of its slab"))?;
        known.extend(ordinal.map(|ordinal| (ordinal, block)));
        Ok(held)
    }

    /// Nothing more is granted: whoever waits is told.
    fn end(&mut self, over: Over) {
        self.shared.set_over(over);
        for (_, (ask, _)) in self.calls.drain() {
            let _ = ask.answer.send(Err(self.shared.lost()));
        }
    }

    fn next(&mut self) -> Result<Option<daemon_message::Message>, Error> {
        let message = self.reader.next_message::<wire::DaemonMessage>().map_err(framed)?;
        // One of a kind that this version does not know is passed over.
        Ok(message.and_then(|message| message.message))
    }

    fn send(&mut self, message: worker_message::Message) -> Result<(), Error> {
        let message = wire::WorkerMessage { message: Some(message) };
        self.writer.push(&message, Vec::new()).map_err(framed)
    }

    async fn exchange(&mut self) -> Result<(), Error> {
        let exchanged = exchange(&self.socket, &mut self.reader, &mut self.writer).await;
        exchanged.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &io::Error) -> Error {
        self.shared.over().unwrap_or_else(|| Error::protocol("handoff", error.to_string()))
    }
}

/// Sends and receives what the socket takes and has, once it does. Dropped, it has done
/// neither or told.
async fn exchange(
    socket: &UnixStream,
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
) -> io::Result<()> {
    let mut interest = Interest::READABLE;
    if !writer.is_empty() {
        interest |= Interest::WRITABLE;
    }
    let ready = socket.ready(interest).await?;
    if ready.is_writable() {
        passed(socket.try_io(Interest::WRITABLE, || writer.flush(socket)), ())?;
    }
    if ready.is_readable() || ready.is_read_closed() {
        let open = socket.try_io(Interest::READABLE, || reader.fill(socket));
        if !passed(open, true)? {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon has ended"));
        }
    }
    Ok(())
}

/// What there is instead when the socket would have to be waited for.
fn passed<T>(result: io::Result<T>, instead: T) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(instead),
        result => result,
    }
}

fn daemon(welcome: &wire::Welcome) -> Result<DaemonSide, Error> {
    let wire::Welcome { protocol, epoch, lease_bytes, keys, .. } = *welcome;
    if protocol != PROTOCOL {
        let what = format!("the daemon speaks version {protocol}, this client {PROTOCOL}");
        return Err(Error::protocol("handoff", what));
    }
    Ok(DaemonSide { epoch, lease_bytes, keys: usize::try_from(keys).unwrap_or(usize::MAX) })
}

fn framed(error: FrameError) -> Error {
    Error::protocol("handoff", error.to_string())
}

fn refusal(failure: Option<wire::Failure>) -> Refusal {
    let wire::Failure { code, message } = failure.unwrap_or_default();
    Refusal::new(i32::try_from(code).unwrap_or_default(), message)
}

#[cfg(test)]
mod tests;
