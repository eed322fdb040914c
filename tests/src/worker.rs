//! The worker's side of the handoff socket, for tests that say what no client would.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tpad_client::Client;
use tpad_manifest::BlockKey;
use tpad_proto::handoff::v1::{self as wire, daemon_message, worker_message};
use tpad_proto::handoff::{FrameReader, FrameWriter, PROTOCOL};

/// Longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Every expert of a model, as its daemon lists them.
///
/// # Panics
/// When it does not.
pub async fn experts(address: &str, model: &str) -> Vec<BlockKey> {
    let client = Client::connect(address).await.expect("the daemon answers");
    let mut blocks = client.list_blocks(model, None);
    let mut keys = Vec::new();
    while let Some(block) = blocks.next().await {
        let key = block.expect("it is listed").key;
        if matches!(key, BlockKey::Expert { .. }) {
            keys.push(key);
        }
    }
    keys
}

/// Where this process has slabs, none of which it may write.
///
/// # Panics
/// When the kernel does not say.
#[must_use]
pub fn slabs() -> Vec<Range<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the kernel lists them");
    let slab = |line: &str| {
        let (addresses, rest) = line.split_once(' ')?;
        let (start, end) = addresses.split_once('-')?;
        let number = |text| usize::from_str_radix(text, 16).ok();
        let shared = rest.starts_with("r--s") && rest.contains("/memfd:");
        shared.then_some(number(start)?..number(end)?)
    };
    maps.lines().filter_map(slab).collect()
}

/// A connection that says what it is told to.
#[derive(Debug)]
pub struct Worker {
    /// For what is no frame.
    pub socket: UnixStream,
    reader: FrameReader,
    writer: FrameWriter,
}

impl Worker {
    /// Connects, and says nothing.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn connect(socket: &Path) -> Self {
        let socket = UnixStream::connect(socket).await.expect("the daemon listens");
        Self { socket, reader: FrameReader::of_daemon(), writer: FrameWriter::to_daemon() }
    }

    /// Connects and is welcome.
    ///
    /// # Panics
    /// When it is not.
    pub async fn welcome(socket: &Path) -> Self {
        let mut worker = Self::connect(socket).await;
        let hello = wire::Hello { protocol: PROTOCOL, worker: "test".into(), directories: true };
        worker.say(worker_message::Message::Hello(hello)).await;
        let welcome = worker.hear().await;
        assert!(matches!(welcome, Some(daemon_message::Message::Welcome(_))), "{welcome:?}");
        worker
    }

    /// Sends a message; `false` when the daemon does not take it.
    ///
    /// # Panics
    /// When it is too long.
    pub async fn say(&mut self, message: worker_message::Message) -> bool {
        let message = wire::WorkerMessage { message: Some(message) };
        self.writer.push(&message, Vec::new()).expect("a short message");
        while !self.writer.is_empty() {
            if timeout(Duration::from_secs(2), self.socket.writable()).await.is_err() {
                return false;
            }
            let (socket, writer) = (&self.socket, &mut self.writer);
            match socket.try_io(Interest::WRITABLE, || writer.flush(socket)) {
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return false,
                _ => {}
            }
        }
        true
    }

    /// Asks for blocks.
    pub async fn acquire(&mut self, call: u64, model: &str, keys: &[BlockKey]) -> bool {
        let keys = keys.iter().map(Into::into).collect();
        let (model, timeout_ms, generation) = (model.to_owned(), 10_000, 0);
        let device = String::new();
        let acquire = wire::Acquire { call, model, generation, keys, timeout_ms, device };
        self.say(worker_message::Message::Acquire(acquire)).await
    }

    /// The next message; `None` when the daemon has closed.
    ///
    /// # Panics
    /// When there is none, and when what comes is no frame.
    pub async fn hear(&mut self) -> Option<daemon_message::Message> {
        timeout(PATIENCE, self.next()).await.expect("the daemon says something, or closes")
    }

    async fn next(&mut self) -> Option<daemon_message::Message> {
        loop {
            let message = self.reader.next_message::<wire::DaemonMessage>().expect("a frame");
            if let Some(message) = message {
                return message.message;
            }
            self.socket.readable().await.ok()?;
            let (socket, reader) = (&self.socket, &mut self.reader);
            match socket.try_io(Interest::READABLE, || reader.fill(socket)) {
                Ok(true) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Ok(false) | Err(_) => return None,
            }
        }
    }

    /// Why it is refused.
    ///
    /// # Panics
    /// When it is not.
    pub async fn refusal(&mut self) -> wire::Failure {
        loop {
            match self.hear().await {
                Some(daemon_message::Message::Refused(refused)) => {
                    return refused.failure.unwrap_or_default();
                }
                Some(_) => {}
                None => unreachable!("it was closed without a word"),
            }
        }
    }

    /// The descriptors that the last message named.
    ///
    /// # Panics
    /// When they did not come.
    pub fn descriptors(&mut self, named: usize) -> Vec<OwnedFd> {
        self.reader.descriptors(named).expect("they came along")
    }
}
