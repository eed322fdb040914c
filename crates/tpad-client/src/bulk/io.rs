//! Sockets that read into two places at once.

use std::fmt::Debug;
use std::io::{self, IoSliceMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use super::low_water;

/// A connected socket.
pub(crate) trait Socket: Debug + Send {
    /// Reads into `into`, and what there is beyond it into `spare`: how much of both. The payload
    /// of a frame goes where it belongs, and the head of the next comes with it, in one call.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
        spare: &mut [u8],
    ) -> Poll<io::Result<usize>>;

    /// Writes some of `bytes`.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>>;

    /// Writes what the system takes at once, when nobody waits any more.
    fn say(&mut self, bytes: &[u8]);

    /// Wakes a waiting reader when this much is there, and not before. Where that cannot be
    /// said readers are woken earlier.
    fn wake_at(&mut self, _bytes: usize) {}
}

macro_rules! plain {
    ($socket:ty, $wake_at:expr) => {
        impl Socket for $socket {
            fn poll_read(
                &mut self,
                cx: &mut Context<'_>,
                into: &mut [u8],
                spare: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                let room = into.len() + spare.len();
                loop {
                    ready!(self.poll_read_ready(cx))?;
                    let places = &mut [IoSliceMut::new(into), IoSliceMut::new(spare)];
                    let mut read = 0;
                    let all = self.try_io(Interest::READABLE, || {
                        read = rustix::io::readv(&*self, places)?;
                        // Less than there was room for: nothing is left, and asking again
                        // would only say so. The next bytes wake us.
                        let empty = read > 0 && read < room;
                        if empty { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
                    });
                    match all {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock && read == 0 => {}
                        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                            return Poll::Ready(Err(error));
                        }
                        _ => return Poll::Ready(Ok(read)),
                    }
                }
            }

            fn poll_write(
                &mut self,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                AsyncWrite::poll_write(Pin::new(self), cx, bytes)
            }

            fn say(&mut self, bytes: &[u8]) {
                // Nobody is told if it does not fit: the socket closes either way.
                let _ = self.try_write(bytes);
            }

            fn wake_at(&mut self, bytes: usize) {
                $wake_at(self, bytes);
            }
        }
    };
}

plain!(TcpStream, |socket: &TcpStream, bytes| {
    // Refused, it changes nothing but how often we are woken.
    let _ = low_water::set(socket, bytes);
});
// The kernel wakes readers of Unix sockets with every write, whatever their mark is.
plain!(UnixStream, |_: &UnixStream, _: usize| {});

/// A stream that decrypts, or a test's: one place at a time.
#[derive(Debug)]
pub(super) struct Layered<S> {
    stream: S,
    /// Something was written that may lie within the stream.
    unflushed: bool,
}

impl<S> Layered<S> {
    pub(super) fn over(stream: S) -> Self {
        Self { stream, unflushed: false }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + Debug> Socket for Layered<S> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
        spare: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        // What we wait for may be the answer. A stream that cannot be written may still be read.
        if self.unflushed && Pin::new(&mut self.stream).poll_flush(cx).is_ready() {
            self.unflushed = false;
        }
        let mut buffer = ReadBuf::new(if into.is_empty() { spare } else { into });
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.unflushed = true;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn say(&mut self, bytes: &[u8]) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let _ = Pin::new(&mut self.stream).poll_write(&mut cx, bytes);
        let _ = Pin::new(&mut self.stream).poll_flush(&mut cx);
    }
}
