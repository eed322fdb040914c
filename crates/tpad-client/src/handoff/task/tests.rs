//! A daemon that says what a test has it say.

mod device;
mod expected;
mod left;

use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use tokio::net::UnixListener;
use tpad_manifest::{BlockKey, ExpertKey};

use super::*;
use crate::{AcquireOptions, Handoff};

const IMAGE: &[u8] = &[7; 256];

/// The daemon's side of one connection.
struct Peer {
    socket: UnixStream,
    reader: FrameReader,
    writer: FrameWriter,
}

impl Peer {
    async fn read(&mut self) -> Option<worker_message::Message> {
        loop {
            let message = self.reader.next_message::<wire::WorkerMessage>().expect("a frame");
            if let Some(message) = message {
                return message.message;
            }
            exchange(&self.socket, &mut self.reader, &mut self.writer).await.ok()?;
        }
    }

    async fn write(&mut self, message: daemon_message::Message, files: Vec<std::os::fd::OwnedFd>) {
        let message = wire::DaemonMessage { message: Some(message) };
        self.writer.push(&message, files).expect("short");
        while !self.writer.is_empty() {
            self.socket.writable().await.expect("open");
            let sent = self.socket.try_io(Interest::WRITABLE, || self.writer.flush(&self.socket));
            passed(sent, ()).expect("open");
        }
    }

    /// The number of the next call.
    async fn call(&mut self) -> u64 {
        match self.read().await {
            Some(worker_message::Message::Acquire(acquire)) => acquire.call,
            other => panic!("no call: {other:?}"),
        }
    }
}

/// A worker that is welcome, and its daemon.
async fn pair(directory: &Path) -> (Handoff, Peer) {
    pair_with(directory, Vec::new()).await
}

/// The same, with GPUs that the daemon hands over memory of.
async fn pair_with(directory: &Path, devices: Vec<String>) -> (Handoff, Peer) {
    let path = directory.join("h.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let daemon = async {
        let (socket, _) = listener.accept().await.expect("a worker");
        let (reader, writer) = (FrameReader::of_worker(), FrameWriter::to_worker());
        let mut peer = Peer { socket, reader, writer };
        assert!(matches!(peer.read().await, Some(worker_message::Message::Hello(_))));
        let (protocol, epoch, lease_bytes, keys) = (PROTOCOL, 9, 1 << 20, 4);
        let welcome = wire::Welcome { protocol, epoch, lease_bytes, keys, devices };
        peer.write(daemon_message::Message::Welcome(welcome), Vec::new()).await;
        peer
    };
    let (handoff, peer) = tokio::join!(Handoff::connect_to(&path), daemon);
    (handoff.expect("it is welcome"), peer)
}

fn key() -> BlockKey {
    let key = ExpertKey { tier: "t".parse().expect("an id"), group: 0, expert: 0 };
    BlockKey::Expert { key, layer: 0 }
}

/// A slab with an image at `4096`.
fn slab() -> std::os::fd::OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("slab", flags).expect("a memfd");
    ftruncate(&file, 8192).expect("it is writable");
    rustix::io::pwrite(&file, IMAGE, 4096).expect("it is writable");
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::FUTURE_WRITE).expect("sealed");
    file
}

/// A lease of one tensor of 256 bytes there.
fn lease(lease: u64, offset: u64) -> wire::Outcome {
    lease_of(&key(), lease, offset)
}

fn lease_of(key: &BlockKey, lease: u64, offset: u64) -> wire::Outcome {
    use tpad_manifest::{BlockId, BlockRecord, GateUp, Orientation, Role, TensorRecord};
    let tensor = TensorRecord {
        role: Role {
            projection: tpad_manifest::Projection::Down,
            part: tpad_manifest::Part::Weight,
        },
        orientation: Orientation::OutIn,
        gate_up: GateUp::Unknown,
        values_per_element: 1,
        sliced: false,
        dtype: "U8".into(),
        name: "w".into(),
        shape: vec![256],
        ranges: Vec::new(),
    };
    let record = BlockRecord { id: BlockId::of(IMAGE), tensors: vec![tensor], source: None };
    let block = tpad_proto::block(key, &record, tpad_proto::v1::Medium::Dram).expect("small");
    let lease = wire::Lease { lease, slab: 1, offset, block: Some(block), ordinal: Some(0) };
    wire::Outcome { outcome: Some(wire::outcome::Outcome::Lease(lease)) }
}

fn acquired(call: u64, outcomes: Vec<wire::Outcome>, slabs: bool) -> daemon_message::Message {
    let slab = wire::Slab { slab: 1, bytes: 8192, slot_bytes: 4096, device: String::new() };
    acquired_with(call, outcomes, slabs.then_some(slab).into_iter().collect())
}

fn acquired_with(
    call: u64,
    outcomes: Vec<wire::Outcome>,
    slabs: Vec<wire::Slab>,
) -> daemon_message::Message {
    let (revision, generation) = (2, 3);
    daemon_message::Message::Acquired(wire::Acquired {
        call,
        revision,
        generation,
        outcomes,
        failure: None,
        slabs,
        directory: None,
    })
}

#[tokio::test]
async fn a_block_is_read_in_place_and_given_back_with_its_last_clone() {
    let directory = tempfile::tempdir().expect("a directory");
    let (handoff, mut peer) = pair(directory.path()).await;
    let daemon = async {
        let call = peer.call().await;
        peer.write(acquired(call, vec![lease(5, 4096)], true), vec![slab()]).await;
    };
    let keys = [key()];
    let (got, ()) = tokio::join!(handoff.acquire("m", &keys, AcquireOptions::default()), daemon);
    let mut got = got.expect("it is leased");
    assert_eq!((got.revision, got.generation), (2, 3));
    let block = got.blocks.remove(0).expect("it is leased");
    assert_eq!((&block[..], block.as_ptr() as usize % 4096), (IMAGE, 0));
    let tensor = block.tensors().next().expect("one");
    assert_eq!((tensor.name, tensor.shape, tensor.bytes), ("w", &[256][..], IMAGE));

    // Asked for while it is read, the slab is given up with the block.
    peer.write(
        daemon_message::Message::Forget(wire::Forget { slabs: vec![1], ..Default::default() }),
        Vec::new(),
    )
    .await;
    let clone = block.clone();
    drop(block);
    tokio::task::yield_now().await;
    assert_eq!(&clone[..], IMAGE);
    drop(clone);
    let released = peer.read().await;
    assert!(matches!(released, Some(worker_message::Message::Release(it)) if it.leases == [5]));
    let forgotten = peer.read().await;
    assert!(matches!(forgotten, Some(worker_message::Message::Forgotten(it)) if it.slabs == [1]));
    drop(handoff);
    assert!(peer.read().await.is_none(), "nobody holds the connection");
}

#[tokio::test]
async fn leases_that_make_no_sense_are_errors_and_given_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let (handoff, mut peer) = pair(directory.path()).await;
    let daemon = async {
        let call = peer.call().await;
        let wrong = vec![lease(5, 8192), lease(6, u64::MAX), lease(7, 4352), lease(8, 4096)];
        peer.write(acquired(call, wrong, true), vec![slab()]).await;
    };
    let keys = vec![key(); 4];
    let (got, ()) = tokio::join!(handoff.acquire("m", &keys, AcquireOptions::default()), daemon);
    let blocks = got.expect("an answer").blocks;
    assert_eq!(blocks.iter().map(Result::is_ok).collect::<Vec<_>>(), [false, false, false, true]);
    let Some(worker_message::Message::Release(mut released)) = peer.read().await else {
        panic!("no release");
    };
    released.leases.sort_unstable();
    assert_eq!(released.leases, [5, 6, 7]);
    assert!(handoff.acquire("m", &vec![key(); 5], AcquireOptions::default()).await.is_err());
}

#[tokio::test]
async fn an_answer_to_other_keys_is_an_error_and_given_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let (handoff, mut peer) = pair(directory.path()).await;
    let BlockKey::Expert { key: expert, layer } = key() else { unreachable!("one of an expert") };
    let other = BlockKey::Expert { key: expert, layer: layer + 1 };
    let answers = [
        vec![],
        vec![lease(5, 4096)],
        vec![lease(6, 4096), lease(7, 4096), lease(8, 4096)],
        vec![lease(9, 4096), lease_of(&other, 10, 4096)],
    ];
    for (n, outcomes) in answers.into_iter().enumerate() {
        let leases = outcomes.len();
        let daemon = async {
            let call = peer.call().await;
            let files = (n == 0).then(slab).into_iter().collect();
            peer.write(acquired(call, outcomes, n == 0), files).await;
        };
        let keys = [key(), key()];
        let call = handoff.acquire("m", &keys, AcquireOptions::default());
        let (got, ()) = tokio::join!(call, daemon);
        let error = got.expect_err("it answers something else");
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
        let mut released = 0;
        while released < leases {
            let Some(worker_message::Message::Release(release)) = peer.read().await else {
                panic!("no release");
            };
            released += release.leases.len();
        }
        assert_eq!(released, leases, "after answer {n}");
    }
}

#[tokio::test]
async fn a_refusal_ends_calls_and_the_connection_stays_as_long_as_a_block_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let (handoff, mut peer) = pair(directory.path()).await;
    let options = AcquireOptions::default();
    let keys = [key()];
    let daemon = async {
        let call = peer.call().await;
        peer.write(acquired(call, vec![lease(5, 4096)], true), vec![slab()]).await;
    };
    let (got, ()) = tokio::join!(handoff.acquire("m", &keys, options), daemon);
    let block = got.expect("an answer").blocks.remove(0).expect("it is leased");
    let failure = wire::Failure {
        code: 14,
        message: "the daemon drains".into(),
        reason: "DRAINING".into(),
        retry_ms: 250,
    };
    let refused = wire::Refused { failure: Some(failure) };
    peer.write(daemon_message::Message::Refused(refused), Vec::new()).await;
    let error = loop {
        tokio::task::yield_now().await;
        if let Some(error) = handoff.over() {
            break error;
        }
    };
    assert_eq!(error.kind(), crate::Kind::Unavailable);
    let again = handoff.acquire("m", &keys, options).await.expect_err("it drains");
    assert!(again.to_string().contains("drains"), "{again}");
    let refusal = again.refusal().expect("the daemon said so");
    assert_eq!(refusal.reason, "DRAINING");
    assert_eq!(refusal.retry_after, Some(std::time::Duration::from_millis(250)));
    drop(handoff);
    assert_eq!(&block[..], IMAGE);
    drop(block);
    while peer.read().await.is_some() {}
}

#[tokio::test]
async fn what_is_held_stays_when_the_daemon_or_the_runtime_ends() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().to_owned();
    let (runtime, block, mut peer, handoff) = {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (block, peer, handoff) = runtime
            .spawn(async move {
                let (handoff, mut peer) = pair(&path).await;
                let keys = [key()];
                let daemon = async {
                    let call = peer.call().await;
                    peer.write(acquired(call, vec![lease(5, 4096)], true), vec![slab()]).await;
                };
                let call = handoff.acquire("m", &keys, AcquireOptions::default());
                let (got, ()) = tokio::join!(call, daemon);
                let block = got.expect("an answer").blocks.remove(0).expect("it is leased");
                let socket = peer.socket.into_std().expect("a socket");
                (block, (socket, peer.reader, peer.writer), handoff)
            })
            .await
            .expect("it ends");
        (runtime, block, peer, handoff)
    };
    runtime.shutdown_background();
    let lost = handoff.acquire("m", &[key()], AcquireOptions::default()).await.expect_err("lost");
    assert!(matches!(lost, Error::Disconnected { .. }), "{lost}");
    drop(handoff);
    // The connection is there: the daemon sees no end as long as the block is read.
    peer.0.set_nonblocking(true).expect("it can be");
    let nothing = peer.1.fill(&peer.0).expect_err("nothing has come");
    assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(&block[..], IMAGE);
    drop(block);
    assert!(!peer.1.fill(&peer.0).expect("the end"));
}
