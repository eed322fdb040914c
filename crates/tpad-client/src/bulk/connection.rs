//! One connection: its socket, and the bytes between it and the protocol.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::call::CallState;
use super::frame::{self, FrameHead, HEAD_BYTES};
use super::header::HEADER_BLOCK_BYTES;
use super::io::Socket;
use super::session::{Fault, Session};

/// Read beyond a payload: the heads of the frames that follow. What of it is
/// payload again is copied, so little is taken.
const SPARE_BYTES: usize = 4096;

/// Read where no payload is expected: all of a small reply at once.
const FIRST_BYTES: usize = 8192;

/// A whole header block with its head, and what came with it.
const INPUT_BYTES: usize = HEADER_BLOCK_BYTES + HEAD_BYTES + SPARE_BYTES;

/// Of a frame that has begun the rest is on its way, and nothing else can come before it: we
/// need not be woken by every segment. Being woken costs the sender, too: with one block of
/// 16 MiB at a time a fifth of the processor time of both (docs/performance.md, "Frames and
/// windows"). Of frames of 1 MiB receiving all the while is worth more.
const LEAST_MARKED_FRAME_BYTES: usize = 3 << 19;

/// The least rest that is worth a system call, and the most that is waited for: the kernel
/// keeps twice that memory for it.
const LEAST_MARK_BYTES: usize = 256 << 10;
const MOST_MARK_BYTES: usize = 2 << 20;

/// A connection with at most one call.
pub(super) struct Connection {
    socket: Box<dyn Socket>,
    pub(super) session: Session,
    input: Box<[u8]>,
    /// What of the input was read and is not used up.
    from: usize,
    to: usize,
    /// Of `session.output`.
    written: usize,
    data: Option<Data>,
    /// How much has to be there before the socket wakes us.
    mark: usize,
    /// What is left of a frame that means nothing.
    skip: usize,
    silence: Silence,
    /// What the daemon did wrong.
    fault: u32,
    /// The daemon hears nothing any more. What it said before may still be read.
    deaf: bool,
}

/// A DATA frame that is being received.
#[derive(Debug)]
struct Data {
    left: usize,
    padding: usize,
    /// Whether its rest is waited for.
    marked: bool,
    last: bool,
}

/// How long the other side has said nothing.
struct Silence {
    limit: Duration,
    since: Instant,
    asked: bool,
    timer: Pin<Box<Sleep>>,
}

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the daemon closed the connection")]
    Closed,
    #[error("the daemon did not take the call")]
    NotTaken,
    #[error("the daemon said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the daemon breaks HTTP/2 ({}): {}", frame::reason(.0.code), .0.what)]
    Broken(Fault),
}

impl From<Fault> for ConnectionError {
    fn from(fault: Fault) -> Self {
        Self::Broken(fault)
    }
}

impl Connection {
    /// Nothing is written before the first call. A daemon that says nothing for
    /// `patience` is asked whether it is there, and given up after as long again.
    pub(super) fn new(socket: Box<dyn Socket>, patience: Duration) -> Self {
        let since = Instant::now();
        Self {
            socket,
            session: Session::new(),
            input: vec![0; INPUT_BYTES].into(),
            from: 0,
            to: 0,
            written: 0,
            data: None,
            mark: 1,
            skip: 0,
            silence: Silence {
                limit: patience,
                since,
                asked: false,
                timer: Box::pin(tokio::time::sleep_until(since + patience)),
            },
            fault: frame::NO_ERROR,
            deaf: false,
        }
    }

    /// Whether another call may begin.
    pub(super) fn is_free(&self) -> bool {
        !self.deaf && self.data.is_none() && self.skip == 0 && self.session.is_free()
    }

    /// Silence counts from here: before, nothing was to be said.
    pub(super) fn begin(&mut self) {
        self.silence.heard();
    }

    /// Ready when the call's reply has a head, or has ended.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        loop {
            let call = self.session.call.as_ref();
            if call.is_some_and(CallState::is_not_taken) {
                return Poll::Ready(Err(ConnectionError::NotTaken));
            }
            if call.is_none_or(|call| call.head.is_some() || call.ended) {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_frame(cx))?;
        }
    }

    /// Receives the next bytes of the reply into `into`: how many, and none at its end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<Result<usize, ConnectionError>> {
        loop {
            if let Some(data) = self.data.as_mut().filter(|data| data.left > 0) {
                let want = data.left.min(into.len());
                let bytes = if self.from < self.to {
                    let bytes = want.min(self.to - self.from);
                    into[..bytes].copy_from_slice(&self.input[self.from..self.from + bytes]);
                    self.from += bytes;
                    bytes
                } else {
                    ready!(self.poll_payload(cx, &mut into[..want]))?
                };
                if let Some(data) = &mut self.data {
                    data.left -= bytes;
                }
                self.session.take(bytes);
                return Poll::Ready(Ok(bytes));
            }
            if self.data.is_none() && self.session.call.as_ref().is_none_or(|call| call.ended) {
                return Poll::Ready(Ok(0));
            }
            ready!(self.poll_frame(cx))?;
        }
    }

    /// Takes in what of one frame there is; a payload is left to [`Connection::poll_read`].
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        match self.frame() {
            Ok(None) => Poll::Ready(Ok(())),
            Ok(Some(needed)) => self.poll_fill(cx, needed),
            Err(fault) => {
                self.fault = fault.code;
                Poll::Ready(Err(fault.into()))
            }
        }
    }

    /// One step; how many bytes the input needs where that is what is missing.
    fn frame(&mut self) -> Result<Option<usize>, Fault> {
        let there = self.to - self.from;
        if let Some(data) = &mut self.data {
            let bytes = data.padding.min(there);
            data.padding -= bytes;
            self.from += bytes;
            self.session.take(bytes);
            if data.padding > 0 {
                return Ok(Some(1));
            }
            let last = data.last;
            self.data = None;
            if last {
                self.session.end_of_data();
            }
            return Ok(None);
        }
        if self.skip > 0 {
            let bytes = self.skip.min(there);
            self.skip -= bytes;
            self.from += bytes;
            return Ok((self.skip > 0).then_some(1));
        }
        let Some(head) = self.input[self.from..self.to].first_chunk() else {
            return Ok(Some(HEAD_BYTES));
        };
        let head = FrameHead::read(*head);
        if head.kind == frame::DATA {
            return self.open_data(head);
        }
        let kept = Session::keeps(head)?;
        let Some(payload) = self.input[self.from + HEAD_BYTES..self.to].get(..kept) else {
            return Ok(Some(HEAD_BYTES + kept));
        };
        self.session.frame(head, payload)?;
        self.from += HEAD_BYTES + kept;
        self.skip = head.bytes - kept;
        Ok(None)
    }

    fn open_data(&mut self, head: FrameHead) -> Result<Option<usize>, Fault> {
        let padded = head.has(frame::PADDED);
        let needed = HEAD_BYTES + usize::from(padded && head.bytes > 0);
        if self.to - self.from < needed {
            return Ok(Some(needed));
        }
        self.session.data(head)?;
        let marked = head.bytes >= LEAST_MARKED_FRAME_BYTES;
        let last = head.has(frame::END_STREAM);
        let mut data = Data { left: head.bytes, padding: 0, marked, last };
        if padded {
            // Checked above unless the frame is empty, which the next line refuses.
            data.padding = usize::from(self.input[self.from + needed - 1]);
            let rest = head.bytes.checked_sub(1 + data.padding);
            let what = || "DATA has more padding than bytes".to_owned();
            data.left = rest.ok_or_else(|| Fault { code: frame::PROTOCOL_ERROR, what: what() })?;
            self.session.take(1);
        }
        self.from += needed;
        self.data = Some(data);
        Ok(None)
    }

    /// Reads until `needed` bytes of the input are there, or some of them.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        needed: usize,
    ) -> Poll<Result<(), ConnectionError>> {
        if self.from > 0 {
            self.input.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        loop {
            self.poll_output(cx);
            let end = needed.max(FIRST_BYTES).min(self.input.len());
            match self.socket.poll_read(cx, &mut [], &mut self.input[self.to..end]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(ConnectionError::Closed)),
                Poll::Ready(Ok(bytes)) => {
                    self.to += bytes;
                    self.silence.heard();
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    self.wake_at(1);
                    ready!(self.poll_silence(cx))?;
                }
            }
        }
    }

    /// Reads payload into its place, and what follows it into the empty input.
    fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<Result<usize, ConnectionError>> {
        loop {
            self.poll_output(cx);
            match self.socket.poll_read(cx, into, &mut self.input[..SPARE_BYTES]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(ConnectionError::Closed)),
                Poll::Ready(Ok(bytes)) => {
                    let payload = bytes.min(into.len());
                    (self.from, self.to) = (0, bytes - payload);
                    self.silence.heard();
                    return Poll::Ready(Ok(payload));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    let data = self.data.as_ref().filter(|data| data.marked);
                    self.wake_at(data.map_or(1, |data| data.left));
                    ready!(self.poll_silence(cx))?;
                }
            }
        }
    }

    /// Sets when the socket wakes us next: when `rest` is there, which is sure to come.
    fn wake_at(&mut self, rest: usize) {
        let worth = rest >= LEAST_MARK_BYTES && !self.silence.asked;
        let mark = if worth { rest.min(MOST_MARK_BYTES) } else { 1 };
        if mark != self.mark {
            self.mark = mark;
            self.socket.wake_at(mark);
        }
    }

    /// Writes what there is to say, as far as the socket takes it.
    fn poll_output(&mut self, cx: &mut Context<'_>) {
        while self.written < self.session.output.len() && !self.deaf {
            match self.socket.poll_write(cx, &self.session.output[self.written..]) {
                Poll::Ready(Ok(0) | Err(_)) => self.deaf = true,
                Poll::Ready(Ok(bytes)) => self.written += bytes,
                Poll::Pending => return,
            }
        }
        self.session.said();
        self.written = 0;
    }

    /// Ready when there is something new to say to a daemon that is silent.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        loop {
            ready!(self.silence.timer.as_mut().poll(cx));
            let due = self.silence.since + self.silence.limit;
            if due > Instant::now() {
                self.silence.timer.as_mut().reset(due);
            } else if self.silence.asked {
                return Poll::Ready(Err(ConnectionError::Silent(self.silence.limit * 2)));
            } else {
                // From now: nobody may have looked for long.
                self.silence.since = Instant::now();
                self.silence.asked = true;
                // Of a frame that comes in slowly we have heard nothing below the mark.
                self.wake_at(1);
                self.session.ping();
                self.silence.timer.as_mut().reset(self.silence.since + self.silence.limit);
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Whether an idle connection still serves: takes in what came meanwhile.
    pub(super) fn is_open(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.poll_frame(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return false,
                Poll::Pending => return self.is_free(),
            }
        }
    }

    /// Tells the daemon that we leave, if that can be done at once.
    pub(super) fn leave(mut self) {
        if self.deaf {
            return;
        }
        self.session.leave(self.fault);
        let bytes = &self.session.output[self.written..];
        self.socket.say(bytes);
    }
}

impl Silence {
    fn heard(&mut self) {
        self.since = Instant::now();
        self.asked = false;
    }
}

#[cfg(test)]
mod tests;
