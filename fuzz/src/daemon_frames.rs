//! What a daemon says on the handoff socket, and the descriptors that it sends along, is
//! refused, or it is blocks whose every byte can be read as long as they are held. No
//! descriptor and no mapping of it is left when they are gone.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, sendmsg};
use tempfile::TempDir;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;
use tpad_client::{AcquireOptions, Handoff, HeldBlock};
use tpad_manifest::{BlockKey, ExpertKey};
use tpad_proto::handoff::v1::{self as wire, daemon_message, worker_message};
use tpad_proto::handoff::{FrameReader, FrameWriter, PROTOCOL};

use crate::bounded_by;

/// What a slab is called among a process's mappings.
const NAME: &str = "tpad-fuzzed-slab";

/// As many bytes as the inputs say that a slab has.
const SLAB_BYTES: u64 = 8192;

/// The most descriptors that are sent at once: one more than a reader takes.
const DESCRIPTORS: usize = 129;

/// A connection's own buffers, beside what the bytes may take.
const CONNECTION_BYTES: usize = 4096;

/// What pretends to be a daemon.
struct Daemon {
    runtime: Runtime,
    listener: UnixListener,
    directory: TempDir,
    /// A slab, what could be shortened or written to, one that is too short, and none at all.
    files: [OwnedFd; 4],
}

thread_local! {
    static DAEMON: RefCell<Daemon> = RefCell::new(Daemon::new());
}

/// Reads an input: whether it is accepted.
///
/// # Panics
/// When it is neither refused nor right.
pub fn daemon_frames(input: &[u8]) -> bool {
    DAEMON.with_borrow(|daemon| {
        let before = left();
        let bytes = input.len() + CONNECTION_BYTES;
        let held = bounded_by(bytes, || daemon.runtime.block_on(daemon.talk(input)));
        assert_eq!(left(), before, "descriptors and mappings");
        held
    })
}

/// More than a task needs that is woken to its end, and what it drops.
const TURNS: usize = 16;

/// How many descriptors this process has, and how many slabs it has mapped.
fn left() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").expect("the kernel lists them").count();
    let mapped = std::fs::read_to_string("/proc/self/maps").expect("the kernel lists them");
    (descriptors, mapped.matches(NAME).count())
}

impl Daemon {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let directory = TempDir::with_prefix("tpad-fuzz-").expect("a temporary directory");
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket(&directory)).expect("a socket")
        };
        let sealed = SealFlags::SHRINK | SealFlags::FUTURE_WRITE;
        let (no_slab, _) = io::pipe().expect("a pipe");
        let files = [
            memfd(SLAB_BYTES, sealed),
            memfd(SLAB_BYTES, SealFlags::empty()),
            memfd(SLAB_BYTES / 2, sealed),
            no_slab.into(),
        ];
        Self { runtime, listener, directory, files }
    }

    /// Has a worker connect, ask for two blocks, read those that it gets, and let go.
    async fn talk(&self, input: &[u8]) -> bool {
        // The first byte says which file goes along, and whether the rest comes in place of
        // a welcome.
        let (how, said) = input.split_first().unwrap_or((&0, &[]));
        let file = self.files[usize::from(how & 3)].as_fd();
        let welcome = how & 4 == 0;
        let path = socket(&self.directory);
        let daemon = async {
            let (socket, _) = self.listener.accept().await.expect("a worker");
            if welcome {
                self::welcome(&socket);
            } else {
                say(&socket, said, file).await;
            }
            socket
        };
        let (worker, socket) = tokio::join!(Handoff::connect_to(&path), daemon);
        let mut heard = FrameReader::of_worker();
        let Ok(worker) = worker else {
            hear(&socket, &mut heard, |_| false).await;
            return false;
        };
        let daemon = async {
            if welcome {
                let asks = |it: &worker_message::Message| {
                    matches!(it, worker_message::Message::Acquire(_))
                };
                hear(&socket, &mut heard, asks).await;
                say(&socket, said, file).await;
            }
        };
        let keys = [0, 1].map(key);
        let call = worker.acquire("m", &keys, AcquireOptions::default());
        let (acquired, ()) = tokio::join!(call, daemon);
        let blocks = acquired.map_or_else(|_| Vec::new(), |acquired| acquired.blocks);
        assert!(blocks.is_empty() || blocks.len() == keys.len(), "an outcome for each key");
        for (key, block) in keys.iter().zip(&blocks) {
            assert!(block.as_ref().map_or(true, |it| it.key() == key), "another block");
        }
        let held: Vec<HeldBlock> = blocks.into_iter().filter_map(Result::ok).collect();
        let sum = held.iter().map(read).fold(0, u64::wrapping_add);
        // To the end of what was said.
        while worker.over().is_none() {
            yield_now().await;
        }
        let again = held.iter().map(read).fold(0, u64::wrapping_add);
        assert_eq!(sum, again, "what is held has changed");
        let any = !held.is_empty();
        drop((held, worker));
        hear(&socket, &mut heard, |_| false).await;
        // The connection is shut down before its task has had its turn, which ends it.
        for _ in 0..TURNS {
            yield_now().await;
        }
        any
    }
}

fn socket(directory: &TempDir) -> PathBuf {
    directory.path().join("h.sock")
}

fn memfd(bytes: u64, seals: SealFlags) -> OwnedFd {
    let file = memfd_create(NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let file = file.expect("a memfd");
    ftruncate(&file, bytes).expect("it is writable");
    fcntl_add_seals(&file, seals).expect("seals are allowed");
    file
}

fn key(layer: u32) -> BlockKey {
    let key = ExpertKey { tier: "t".parse().expect("a tier's id"), group: 0, expert: 0 };
    BlockKey::Expert { key, layer }
}

/// Reads every byte of a block and holds it against what is promised of its place.
fn read(block: &HeldBlock) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    assert_eq!(block.image().as_ptr() as usize % 4096, 0, "an image begins on a page");
    let image = block.image().as_ptr_range();
    for tensor in block.tensors() {
        let bytes = tensor.bytes.as_ptr_range();
        assert!(image.start <= bytes.start && bytes.end <= image.end, "a tensor lies elsewhere");
        assert_eq!(bytes.start as usize % 256, 0, "a tensor begins on 256 bytes");
        let expected = tensor.dtype.tensor_bytes(tensor.shape);
        assert_eq!(expected, Ok(tensor.bytes.len() as u64), "a tensor of another shape");
    }
    sum(block.image())
}

/// Says hello back.
fn welcome(socket: &UnixStream) {
    let welcome = wire::Welcome {
        protocol: PROTOCOL,
        epoch: 1,
        lease_bytes: 1 << 20,
        keys: 2,
        ..Default::default()
    };
    let message = Some(daemon_message::Message::Welcome(welcome));
    let mut writer = FrameWriter::to_worker();
    writer.push(&wire::DaemonMessage { message }, Vec::new()).expect("short");
    writer.flush(socket).expect("there is room");
}

/// Says an input's parts, and nothing more: each is a number of descriptors, a length, and
/// so many bytes.
async fn say(socket: &UnixStream, mut said: &[u8], file: BorrowedFd<'_>) {
    while let [descriptors, length, rest @ ..] = said {
        let (part, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        said = rest;
        if part.is_empty() {
            // Descriptors do not go without a byte.
            continue;
        }
        let files = vec![file; usize::from(*descriptors).min(DESCRIPTORS)];
        loop {
            let sent = socket.try_io(Interest::WRITABLE, || send(socket, part, &files));
            match sent {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.writable().await.expect("it is open");
                }
                // The worker has gone.
                Err(_) => return,
            }
        }
        // What is on its way is bounded, too.
        yield_now().await;
    }
    // Gone already is as well.
    let _ended = rustix::net::shutdown(socket, Shutdown::Write);
}

/// A part is short: it goes at once, or not at all.
fn send(socket: &UnixStream, part: &[u8], files: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(files.is_empty() || control.push(SendAncillaryMessage::ScmRights(files)));
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket, &[IoSlice::new(part)], &mut control, flags)?)
}

/// Hears a worker until it says what is waited for, or goes. Whatever it is told, it says
/// nothing that a daemon would refuse.
async fn hear(
    socket: &UnixStream,
    reader: &mut FrameReader,
    enough: impl Fn(&worker_message::Message) -> bool,
) {
    loop {
        let message = reader.next_message::<wire::WorkerMessage>().expect("a client's frames");
        if let Some(message) = message {
            let message = message.message.expect("a message of a known kind");
            if enough(&message) {
                return;
            }
            continue;
        }
        socket.readable().await.expect("it is open");
        match socket.try_io(Interest::READABLE, || reader.fill(socket)) {
            Ok(true) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(false) | Err(_) => return,
        }
    }
}
