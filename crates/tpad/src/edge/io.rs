//! A connection's socket: TCP or Unix, replaying its preface, watched for writes that stall,
//! and not closed before its peer has read the last of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use super::stall::Stall;
use super::turn::Turn;
use super::window::{Greeting, Window};

/// What is read at a time of what nobody wants: peers that only say how much they
/// have read say 13 bytes.
const SCRAP: usize = 512;

/// Slices of a write that is cut short: of a frame, its header and both parts of its data.
const SLICES: usize = 8;

/// A socket of either family.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket that HTTP is served on.
#[derive(Debug)]
pub(super) struct WatchedIo {
    socket: Socket,
    /// What was read to tell the protocol, and how much of it was replayed.
    preface: &'static [u8],
    stall: Arc<Stall>,
    /// Until it has seen enough.
    greeting: Option<Greeting>,
    /// Whether there is somebody to share the thread with.
    turn: Option<Arc<Turn>>,
    /// Once it is cancelled, the end waits for the peer's.
    linger: Option<CancellationToken>,
    /// Nothing is written any more.
    ended: bool,
}

/// A socket that no runtime watches.
#[derive(Debug)]
pub(super) enum Detached {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

impl Detached {
    /// The socket, watched by the runtime that this is called in.
    pub(super) fn attached(self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(socket) => Socket::Tcp(TcpStream::from_std(socket)?),
            Self::Unix(socket) => Socket::Unix(UnixStream::from_std(socket)?),
        })
    }
}

impl Socket {
    /// The socket, for another runtime.
    pub(super) fn detached(self) -> io::Result<Detached> {
        Ok(match self {
            Self::Tcp(socket) => Detached::Tcp(socket.into_std()?),
            Self::Unix(socket) => Detached::Unix(socket.into_std()?),
        })
    }

    /// Writes what the socket takes at once, for a peer that is about to be closed.
    pub(super) fn write_farewell(&self, bytes: &[u8]) {
        // Nobody is told if it does not fit: the connection closes either way.
        let _ = match self {
            Self::Tcp(socket) => socket.try_write(bytes),
            Self::Unix(socket) => socket.try_write(bytes),
        };
    }
}

impl WatchedIo {
    /// `preface` is handed out before the socket is read.
    pub(super) fn new(socket: Socket, preface: &'static [u8], stall: Arc<Stall>) -> Self {
        Self { socket, preface, stall, greeting: None, turn: None, linger: None, ended: false }
    }

    /// The same, which finds in what the peer says first what `window` it gives.
    pub(super) fn greeted(self, window: Window) -> Self {
        Self { greeting: Some(Greeting::new(window)), ..self }
    }

    /// The same, which writes no more than `turn` allows each time it is polled.
    pub(super) fn in_turn(self, turn: Arc<Turn>) -> Self {
        Self { turn: Some(turn), ..self }
    }

    /// The same, which ends with its peer once `drain` is cancelled.
    ///
    /// What was written last may lie with the kernel for long after the last
    /// write. If the socket were closed then, the next byte from its peer, an
    /// HTTP/2 client's word on how much it has read, would be answered with a
    /// reset, and the reset throws away what was not yet read.
    pub(super) fn lingering(self, drain: CancellationToken) -> Self {
        Self { linger: Some(drain), ..self }
    }

    /// Reads and forgets until the peer ends, which it does after it has read
    /// our end. Who says nothing for long has stalled; the rest is up to the
    /// drain's deadline.
    fn poll_peers_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scrap = [0; SCRAP];
        loop {
            let mut scrap = ReadBuf::new(&mut scrap);
            match ready!(Pin::new(&mut self.socket).poll_read(cx, &mut scrap)) {
                Ok(()) if !scrap.filled().is_empty() => self.stall.progress(),
                // A peer that is gone needs nothing any more.
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// Writes of `bytes` with `write` what the turn allows: nothing, and later, if it is another's.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: usize,
        write: impl FnOnce(Pin<&mut Socket>, &mut Context<'_>, usize) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let turn = self.turn.as_ref();
        let most = turn.map_or(Some(bytes), |turn| turn.may_write(bytes, cx.waker()));
        // Whether the socket would take more is not known: what has stalled goes on stalling.
        let Some(most) = most else { return Poll::Pending };
        let written = write(Pin::new(&mut self.socket), cx, most);
        match &written {
            Poll::Pending => self.stall.begin(),
            Poll::Ready(result) => {
                self.stall.clear();
                if let (Some(turn), Ok(bytes)) = (&self.turn, result) {
                    turn.wrote(*bytes);
                }
            }
        }
        written
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Unix(socket) => Pin::new(socket).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
            Self::Unix(socket) => Pin::new(socket).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_flush(cx),
            Self::Unix(socket) => Pin::new(socket).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for WatchedIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.preface.is_empty() {
            let (now, later) = this.preface.split_at(this.preface.len().min(buffer.remaining()));
            buffer.put_slice(now);
            this.preface = later;
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.socket).poll_read(cx, buffer);
        if let Some(greeting) = &mut this.greeting
            && !greeting.sees(&buffer.filled()[before..])
        {
            this.greeting = None;
        }
        read
    }
}

impl AsyncWrite for WatchedIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let write = |socket: Pin<&mut Socket>, cx: &mut Context<'_>, most| {
            socket.poll_write(cx, &bytes[..most])
        };
        self.get_mut().write(cx, bytes.len(), write)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        self.get_mut().write(cx, bytes, |socket, cx, most| {
            let mut first = [io::IoSlice::new(&[]); SLICES];
            match (most < bytes).then(|| cut(slices, most, &mut first)) {
                None => socket.poll_write_vectored(cx, slices),
                Some(first) => socket.poll_write_vectored(cx, first),
            }
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            this.ended = true;
            this.stall.progress();
        }
        if this.linger.as_ref().is_some_and(CancellationToken::is_cancelled) {
            ready!(this.poll_peers_end(cx));
        }
        this.stall.clear();
        Poll::Ready(Ok(()))
    }
}

/// The first `most` bytes of `slices`, in `first`.
fn cut<'a, 'b>(
    slices: &'a [io::IoSlice<'a>],
    most: usize,
    first: &'b mut [io::IoSlice<'a>; SLICES],
) -> &'b [io::IoSlice<'a>] {
    let (mut left, mut count) = (most, 0);
    for (slice, place) in slices.iter().zip(first.iter_mut()) {
        let now = slice.len().min(left);
        *place = io::IoSlice::new(&slice[..now]);
        (left, count) = (left - now, count + 1);
        if left == 0 {
            break;
        }
    }
    &first[..count]
}
