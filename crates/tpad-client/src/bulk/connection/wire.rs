//! A connection's socket: what there is to say is written before each read, and who waits for
//! more to read is woken when it is worth it, or when the daemon has been silent for too long.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::super::io::Socket;
use super::super::session::Session;
use super::ConnectionError;
use super::silence::Silence;

/// The least that is worth a system call, and the most that is waited for: the kernel
/// keeps twice that memory for it.
pub(super) const LEAST_MARK_BYTES: usize = 256 << 10;
const MOST_MARK_BYTES: usize = 2 << 20;

/// The socket, and what was agreed with it.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    /// Of the session's output.
    written: usize,
    /// How much has to be there before the socket wakes us.
    mark: usize,
    silence: Silence,
    /// The daemon hears nothing any more. What it said before may still be read.
    deaf: bool,
}

impl Wire {
    pub(super) fn new(socket: Box<dyn Socket>, patience: Duration) -> Self {
        Self { socket, written: 0, mark: 1, silence: Silence::new(patience), deaf: false }
    }

    /// Silence counts from here: before, nothing was to be said.
    pub(super) fn begin(&mut self) {
        self.silence.heard();
    }

    /// Whether nothing can be said any more.
    pub(super) fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Reads into `into`, and what there is beyond it into `spare`: how much of both. While
    /// nothing is there `awaited` bytes are waited for, which are sure to come, if that is worth
    /// it.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session,
        into: &mut [u8],
        spare: &mut [u8],
        awaited: usize,
    ) -> Poll<Result<usize, ConnectionError>> {
        loop {
            self.poll_output(cx, session);
            match self.socket.poll_read(cx, into, spare) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(ConnectionError::Closed)),
                Poll::Ready(Ok(bytes)) => {
                    self.silence.heard();
                    return Poll::Ready(Ok(bytes));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    self.wake_at(awaited);
                    ready!(self.silence.poll(cx))?;
                    // Of a frame that comes in slowly we have heard nothing below the mark.
                    self.wake_at(1);
                    session.ping();
                }
            }
        }
    }

    /// Writes what there is to say, as far as the socket takes it.
    fn poll_output(&mut self, cx: &mut Context<'_>, session: &mut Session) {
        while self.written < session.output.len() && !self.deaf {
            match self.socket.poll_write(cx, &session.output[self.written..]) {
                Poll::Ready(Ok(0) | Err(_)) => self.deaf = true,
                Poll::Ready(Ok(bytes)) => self.written += bytes,
                Poll::Pending => return,
            }
        }
        session.said();
        self.written = 0;
    }

    /// Sets when the socket wakes us next: when so much is there, as far as that is worth it.
    fn wake_at(&mut self, awaited: usize) {
        let worth = awaited >= LEAST_MARK_BYTES && !self.silence.is_asked();
        let mark = if worth { awaited.min(MOST_MARK_BYTES) } else { 1 };
        if mark != self.mark {
            self.mark = mark;
            self.socket.wake_at(mark);
        }
    }

    #[cfg(test)]
    pub(super) fn mark(&self) -> usize {
        self.mark
    }

    /// Writes what of the session's output the socket takes at once.
    pub(super) fn say_at_once(&mut self, session: &Session) {
        self.socket.say(&session.output[self.written..]);
    }
}
