//! What a worker says on the handoff socket is refused, or it is the messages that its
//! frames hold, however they are cut; nothing that follows a refusal is read, and no
//! descriptor that comes along is kept.

use std::io::{IoSlice, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use prost::Message as _;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tpad_manifest::BlockKey;
use tpad_proto::handoff::v1::{WorkerMessage, worker_message::Message};
use tpad_proto::handoff::{FrameReader, WORKER_FRAME_BYTES};
use tpad_proto::v1;

use crate::bounded;

/// What came of an input: its messages, and whether something that is none followed.
type Read = (Vec<WorkerMessage>, bool);

/// Reads an input: whether it is accepted.
///
/// # Panics
/// When it is neither refused nor right.
pub fn worker_frames(input: &[u8]) -> bool {
    // The first byte says how large the pieces are: boundaries fall everywhere.
    let (piece, said) = input.split_first().unwrap_or((&0, &[]));
    let (messages, refused) = bounded(input, || through_socket(said, usize::from(*piece) + 1));
    let expected = by_the_rule(said);
    assert_eq!((&messages, refused), (&expected.0, expected.1), "other messages");
    for message in &messages {
        match &message.message {
            Some(Message::Acquire(acquire)) => acquire.keys.iter().for_each(check),
            Some(Message::Expect(expect)) => expect.keys.iter().for_each(check),
            _ => {}
        }
    }
    !refused && !messages.is_empty()
}

/// Sends the bytes in pieces, the first with a descriptor, and reads them as a daemon does.
fn through_socket(said: &[u8], piece: usize) -> Read {
    let (worker, daemon) = UnixStream::pair().expect("a pair of sockets");
    let (mut kept, along) = std::io::pipe().expect("a pipe");
    let mut reader = FrameReader::of_worker();
    let (mut messages, mut refused) = (Vec::new(), false);
    for (n, piece) in said.chunks(piece).enumerate() {
        send(&worker, piece, (n == 0).then(|| along.as_fd()));
        assert!(reader.fill(&daemon).expect("it was sent"), "an end that nobody made");
        loop {
            match reader.next_message() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => {
                    assert!(!refused && !error.to_string().is_empty(), "{error}");
                    refused = true;
                }
            }
        }
    }
    assert!(reader.descriptors(1).is_err(), "a worker has no descriptors to send");
    drop((along, worker, daemon));
    // Were it still open somewhere, this would wait for ever.
    assert_eq!(kept.read(&mut [0]).expect("a pipe"), 0, "nobody writes");
    (messages, refused)
}

fn send(worker: &UnixStream, piece: &[u8], along: Option<BorrowedFd<'_>>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let along = along.as_slice();
    assert!(along.is_empty() || control.push(SendAncillaryMessage::ScmRights(along)));
    let sent = sendmsg(worker, &[IoSlice::new(piece)], &mut control, SendFlags::DONTWAIT);
    assert_eq!(sent.expect("there is room"), piece.len());
}

/// The same in a few lines, of bytes that are all there.
fn by_the_rule(mut said: &[u8]) -> Read {
    let mut messages = Vec::new();
    while let Some((length, rest)) = said.split_first_chunk() {
        let length = usize::try_from(u32::from_le_bytes(*length)).expect("32 bits fit");
        if length > WORKER_FRAME_BYTES {
            return (messages, true);
        }
        let Some((message, rest)) = rest.split_at_checked(length) else { break };
        said = rest;
        if !message.is_empty() {
            let Ok(message) = WorkerMessage::decode(message) else { return (messages, true) };
            messages.push(message);
        }
    }
    (messages, false)
}

/// A key is refused, or it means the same when it is said again.
fn check(key: &v1::BlockKey) {
    if let Ok(read) = BlockKey::try_from(key.clone()) {
        assert_eq!(BlockKey::try_from(v1::BlockKey::from(&read)).as_ref(), Ok(&read));
    }
}
