//! The task of a connection: the only one that reads its socket and writes to it.

mod answer;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tpad_proto::handoff::v1::{self as wire, daemon_message, worker_message};
use tpad_proto::handoff::{FrameError, FrameReader, FrameWriter, PROTOCOL};

pub(super) use self::answer::Granted;
use super::device::{DeviceSlab, DeviceSlabs};
use super::directories::Directories;
use super::link::{Ask, Call, Link, Over, Shared};
use super::slabs::Slabs;
use super::{DaemonSide, Handoff, HandoffOptions};
use crate::{Error, Refusal};

/// From connecting to the daemon's first word.
const WELCOME_PATIENCE: Duration = Duration::from_secs(10);

/// What may wait to be sent before calls wait.
const UNSENT_BYTES: usize = 1 << 20;

/// Leases that one `Release` names: some 40 KiB.
const RELEASED: usize = 4096;

/// The socket and what has been said on it.
struct Task {
    socket: UnixStream,
    reader: FrameReader,
    writer: FrameWriter,
    slabs: Arc<Slabs>,
    device_slabs: Arc<DeviceSlabs>,
    directories: Arc<Directories>,
    shared: Arc<Shared>,
    asks: mpsc::Receiver<Ask>,
    /// Calls that are not answered yet, with their models.
    calls: HashMap<u64, (Call, String)>,
    next_call: u64,
    /// What maps device memory and unmaps it: the driver takes 0.2 ms for a slab, and longer
    /// while another thread of the process has it allocate.
    mapping: JoinSet<()>,
    _ended: Ended,
}

/// The end of a task, however it comes: nothing is held by the directory any more, and
/// what nobody reads is unmapped.
struct Ended {
    shared: Arc<Shared>,
    slabs: Arc<Slabs>,
    device_slabs: Arc<DeviceSlabs>,
    directories: Arc<Directories>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        // The first reason stays.
        self.shared.set_over(Over::Lost("the runtime of this handoff has ended".to_owned()));
        self.directories.clear();
        self.slabs.clear();
        // Left by now, unless the runtime ends, too.
        drop(self.device_slabs.clear());
    }
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
    let device_slabs = DeviceSlabs::new(&shared);
    let directories = Directories::new(&slabs, &device_slabs);
    let ended = Ended {
        shared: Arc::clone(&shared),
        slabs: Arc::clone(&slabs),
        device_slabs: Arc::clone(&device_slabs),
        directories: Arc::clone(&directories),
    };
    let mut task = Task {
        socket,
        reader: FrameReader::of_daemon(),
        writer: FrameWriter::to_daemon(),
        slabs,
        device_slabs,
        directories: Arc::clone(&directories),
        shared: Arc::clone(&shared),
        asks: received,
        calls: HashMap::new(),
        next_call: 1,
        mapping: JoinSet::new(),
        _ended: ended,
    };
    let welcomed = timeout(WELCOME_PATIENCE, task.hello(options)).await;
    let (daemon, devices) = welcomed.map_err(|_| Error::Deadline { after: WELCOME_PATIENCE })??;
    directories.set_most(daemon.lease_bytes);
    tokio::spawn(task.run());
    let link = Link { shared, asks, socket: kept, process: std::process::id() };
    let (link, ground) = (Arc::new(link), Arc::default());
    Ok(Handoff { link, directories, ground, daemon, devices })
}

impl Task {
    async fn hello(
        &mut self,
        options: HandoffOptions,
    ) -> Result<(DaemonSide, Arc<[String]>), Error> {
        let HandoffOptions { worker, directories } = options;
        let program = || std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
        let worker = worker.unwrap_or_else(program).trim().to_owned();
        let hello = wire::Hello { protocol: PROTOCOL, worker, directories };
        self.send(worker_message::Message::Hello(hello))?;
        loop {
            self.exchange().await?;
            match self.next()? {
                None => {}
                Some(daemon_message::Message::Welcome(welcome)) => return daemon(welcome),
                Some(daemon_message::Message::Refused(refused)) => {
                    return Err(Error::Refused(Box::new(refusal(refused.failure))));
                }
                Some(_) => return Err(Error::protocol("handoff", "the first word is no welcome")),
            }
        }
    }

    /// Runs until nobody holds the connection any more, or the daemon is gone.
    async fn run(self) {
        let (mut mapping, slabs) = self.serve().await;
        while mapping.join_next().await.is_some() {}
        if slabs.iter().any(|slab| slab.is_mapped()) {
            // Unless the runtime ends, too, and they are dropped with it.
            let _unmapped = spawn_blocking(move || drop(slabs)).await;
        }
    }

    /// Serves calls; what is left at the end is the driver's work. Calls that come later
    /// find nobody.
    async fn serve(mut self) -> (JoinSet<()>, Vec<Arc<DeviceSlab>>) {
        while let Some(turn) = self.turn().await {
            if let Err(error) = turn {
                // What is held stays valid: nothing is unmapped that is still read, and the
                // connection is closed by whoever drops the last of it.
                self.end(Over::Lost(error.to_string()));
                break;
            }
        }
        (self.mapping, self.device_slabs.clear())
    }

    /// One event; `None` when nobody holds the connection any more.
    async fn turn(&mut self) -> Option<Result<(), Error>> {
        let takes = self.writer.bytes() < UNSENT_BYTES;
        tokio::select! {
            ask = self.asks.recv(), if takes => Some(self.ask(ask?)),
            () = self.shared.woken.notified() => Some(self.release()),
            // One that panicked has dropped what it had, and whoever waits for it is told.
            Some(_ended) = self.mapping.join_next() => Some(Ok(())),
            exchanged = exchange(&self.socket, &mut self.reader, &mut self.writer) => {
                Some(exchanged.map_err(|error| self.broken(&error)).and_then(|()| self.take()))
            }
        }
    }

    fn ask(&mut self, ask: Ask) -> Result<(), Error> {
        match ask {
            Ask::Acquire(call) => self.call(call),
            Ask::Expect(_) if self.shared.is_over() => Ok(()),
            Ask::Expect(expect) => {
                // One that is too long for a frame: nobody waits for it.
                let _long = self.send(worker_message::Message::Expect(expect));
                Ok(())
            }
        }
    }

    /// Sends a call, or answers it where the daemon would not.
    fn call(&mut self, mut ask: Call) -> Result<(), Error> {
        if let Some(error) = self.shared.over() {
            ask.answer.fail(error);
            return Ok(());
        }
        let call = self.next_call;
        self.next_call += 1;
        ask.message.call = call;
        let message = std::mem::take(&mut ask.message);
        let model = message.model.clone();
        if let Err(error) = self.send(worker_message::Message::Acquire(message)) {
            ask.answer.fail(error);
            return Ok(());
        }
        self.calls.insert(call, (ask, model));
        Ok(())
    }

    /// Tells of leases that are over, and of slabs that nothing reads any more.
    fn release(&mut self) -> Result<(), Error> {
        // First: of what is forgotten by now all leases have ended.
        let (slabs, device_slabs) = (self.slabs.forgotten(), self.device_slabs.forgotten());
        for leases in self.shared.ended().chunks(RELEASED) {
            let release = wire::Release { leases: leases.to_vec() };
            self.send(worker_message::Message::Release(release))?;
        }
        if !slabs.is_empty() || !device_slabs.is_empty() {
            let forgotten = wire::Forgotten { slabs, device_slabs };
            self.send(worker_message::Message::Forgotten(forgotten))?;
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
                    let left = self.device_slabs.forget(&forget.device_slabs);
                    if left.iter().any(|slab| slab.is_mapped()) {
                        // The last holder of each has this task woken.
                        self.mapping.spawn_blocking(move || drop(left));
                    } else {
                        drop(left);
                    }
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

    /// Nothing more is granted: whoever waits is told.
    fn end(&mut self, over: Over) {
        self.shared.set_over(over);
        for (_, (ask, _)) in self.calls.drain() {
            ask.answer.fail(self.shared.lost());
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

fn daemon(welcome: wire::Welcome) -> Result<(DaemonSide, Arc<[String]>), Error> {
    let wire::Welcome { protocol, epoch, lease_bytes, keys, devices } = welcome;
    if protocol != PROTOCOL {
        let what = format!("the daemon speaks version {protocol}, this client {PROTOCOL}");
        return Err(Error::protocol("handoff", what));
    }
    let keys = usize::try_from(keys).unwrap_or(usize::MAX);
    Ok((DaemonSide { epoch, lease_bytes, keys }, devices.into()))
}

fn framed(error: FrameError) -> Error {
    Error::protocol("handoff", error.to_string())
}

fn refusal(failure: Option<wire::Failure>) -> Refusal {
    let wire::Failure { code, message, reason, retry_ms } = failure.unwrap_or_default();
    let retry = Duration::from_millis(retry_ms.into());
    let retry_after = (!retry.is_zero()).then_some(retry);
    let code = i32::try_from(code).unwrap_or_default();
    Refusal { reason, retry_after, ..Refusal::new(code, message) }
}

#[cfg(test)]
mod tests;
