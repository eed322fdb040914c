//! Frames: 4 bytes of length, the lowest first, and a message.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// The longest message of a daemon: an `Acquired` of as many keys as it takes, with
/// some thirty tensors each.
pub const DAEMON_FRAME_BYTES: usize = 1 << 20;

/// The longest message of a worker: an `Acquire` of some hundred keys by long names. A
/// daemon keeps several of each worker.
pub const WORKER_FRAME_BYTES: usize = 64 << 10;

/// Descriptors that one frame brings: the kernel takes 253 at a time.
const DESCRIPTORS: usize = 128;

/// Descriptors that may wait for the frame that names them: those of as many slabs as one
/// answer names, and those that came with the last bytes of it.
const WAITING_DESCRIPTORS: usize = 3 * DESCRIPTORS;

const LENGTH_BYTES: usize = 4;
const READ_BYTES: usize = 16 << 10;

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It says that it is longer than a frame may be.
    #[error("a frame of {bytes} bytes: the longest is {most}")]
    TooLong {
        /// What it says.
        bytes: usize,
        /// The most.
        most: usize,
    },
    /// It holds no message.
    #[error("a frame that is no message: {0}")]
    Message(#[from] prost::DecodeError),
    /// More descriptors came than any frame named.
    #[error("more than {WAITING_DESCRIPTORS} file descriptors that no message names")]
    TooManyDescriptors,
    /// A message names descriptors that did not come with it.
    #[error("a message names {named} file descriptors, and {came} came")]
    MissingDescriptors {
        /// What it names.
        named: usize,
        /// What came.
        came: usize,
    },
}

/// The receiving side of a socket.
#[derive(Debug)]
pub struct FrameReader {
    most: usize,
    buffer: BytesMut,
    takes_descriptors: bool,
    descriptors: VecDeque<OwnedFd>,
    /// What came was no frame once.
    broken: bool,
}

/// The sending side of a socket.
#[derive(Debug)]
pub struct FrameWriter {
    most: usize,
    frames: VecDeque<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    /// What is left of it.
    bytes: Bytes,
    /// They go with its first byte.
    descriptors: Vec<OwnedFd>,
}

impl FrameReader {
    /// A reader of a worker. It has no descriptors to send: the kernel closes those that
    /// it sends all the same.
    #[must_use]
    pub fn of_worker() -> Self {
        Self::new(WORKER_FRAME_BYTES, false)
    }

    /// A reader of a daemon, with its descriptors.
    #[must_use]
    pub fn of_daemon() -> Self {
        Self::new(DAEMON_FRAME_BYTES, true)
    }

    fn new(most: usize, takes_descriptors: bool) -> Self {
        let (buffer, descriptors) = (BytesMut::new(), VecDeque::new());
        Self { most, buffer, takes_descriptors, descriptors, broken: false }
    }

    /// Takes what the socket has; `false` when the peer has ended.
    ///
    /// # Errors
    /// The socket's, [`io::ErrorKind::WouldBlock`] when it has nothing.
    pub fn fill(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let mut chunk = [0; READ_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = if self.takes_descriptors {
            RecvAncillaryBuffer::new(&mut space)
        } else {
            RecvAncillaryBuffer::default()
        };
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(socket, &mut [IoSliceMut::new(&mut chunk)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        self.buffer.extend_from_slice(&chunk[..received.bytes]);
        Ok(received.bytes > 0)
    }

    /// The next message that is there whole.
    ///
    /// # Errors
    /// When what came is no frame: nothing sensible can follow it, and whatever does is
    /// forgotten.
    pub fn next_message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        if self.broken {
            self.buffer.clear();
            self.descriptors.clear();
            return Ok(None);
        }
        let message = self.frame();
        self.broken = message.is_err();
        message
    }

    fn frame<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        if self.descriptors.len() > WAITING_DESCRIPTORS {
            return Err(FrameError::TooManyDescriptors);
        }
        while let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() {
            let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
            if length > self.most {
                return Err(FrameError::TooLong { bytes: length, most: self.most });
            }
            if self.buffer.len() - LENGTH_BYTES < length {
                return Ok(None);
            }
            self.buffer.advance(LENGTH_BYTES);
            // An empty one only brought descriptors.
            if length > 0 {
                return Ok(Some(M::decode(self.buffer.split_to(length))?));
            }
        }
        Ok(None)
    }

    /// The descriptors that the message returned last names, in its order.
    ///
    /// # Errors
    /// When fewer came.
    pub fn descriptors(&mut self, named: usize) -> Result<Vec<OwnedFd>, FrameError> {
        let came = self.descriptors.len();
        if named > came {
            return Err(FrameError::MissingDescriptors { named, came });
        }
        Ok(self.descriptors.drain(..named).collect())
    }
}

impl FrameWriter {
    /// A writer to a worker.
    #[must_use]
    pub fn to_worker() -> Self {
        Self { most: DAEMON_FRAME_BYTES, frames: VecDeque::new() }
    }

    /// A writer to a daemon.
    #[must_use]
    pub fn to_daemon() -> Self {
        Self { most: WORKER_FRAME_BYTES, frames: VecDeque::new() }
    }

    /// Appends a message and the descriptors that it names. More than a frame brings go
    /// with empty frames before it.
    ///
    /// # Errors
    /// When the message is longer than a frame may be.
    pub fn push(
        &mut self,
        message: &impl Message,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<(), FrameError> {
        let length = message.encoded_len();
        if length > self.most {
            return Err(FrameError::TooLong { bytes: length, most: self.most });
        }
        let mut frame = BytesMut::with_capacity(LENGTH_BYTES + length);
        // It fits: it was compared above.
        frame.put_u32_le(u32::try_from(length).unwrap_or(u32::MAX));
        message.encode_raw(&mut frame);
        while descriptors.len() > DESCRIPTORS {
            let rest = descriptors.split_off(DESCRIPTORS);
            let empty = Bytes::from_static(&[0; LENGTH_BYTES]);
            self.frames.push_back(Outgoing { bytes: empty, descriptors });
            descriptors = rest;
        }
        self.frames.push_back(Outgoing { bytes: frame.freeze(), descriptors });
        Ok(())
    }

    /// Whether everything was sent.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes that are not sent yet.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.frames.iter().map(|frame| frame.bytes.len()).sum()
    }

    /// Sends what the socket takes, until there is nothing left.
    ///
    /// # Errors
    /// The socket's, [`io::ErrorKind::WouldBlock`] when it takes no more.
    pub fn flush(&mut self, socket: impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd();
        while let Some(frame) = self.frames.front_mut() {
            let sent = send(socket, &frame.bytes, &frame.descriptors)?;
            frame.descriptors.clear();
            frame.bytes.advance(sent);
            if frame.bytes.is_empty() {
                self.frames.pop_front();
            }
        }
        Ok(())
    }
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("more file descriptors than a frame brings"));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags)?)
}

#[cfg(test)]
mod tests;
