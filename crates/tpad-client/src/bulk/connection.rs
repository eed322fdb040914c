//! One connection: which of its bytes are payload and which are the protocol's.

mod input;
mod silence;
mod wire;

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use self::input::Input;
use self::wire::{LEAST_MARK_BYTES, Wire};
use super::call::CallState;
use super::frame::{self, FrameHead, HEAD_BYTES};
use super::io::Socket;
use super::session::{Fault, Session};

/// Of a frame that has begun the rest is on its way, and nothing else can come before it: we
/// need not be woken by every segment. Being woken costs the sender, too: with one block of
/// 16 MiB at a time a fifth of the processor time of both (docs/performance.md, "Frames and
/// windows"). Of a frame of this size and more all of the rest is waited for, of smaller ones
/// half: of them receiving while the rest is sent is worth more.
const LARGE_FRAME_BYTES: usize = 3 << 19;

/// A connection with at most one call.
pub(super) struct Connection {
    wire: Wire,
    pub(super) session: Session,
    input: Input,
    data: Option<Data>,
    /// What is left of a frame that means nothing.
    skip: usize,
    /// What the daemon did wrong.
    fault: u32,
}

/// A DATA frame that is being received.
#[derive(Debug)]
struct Data {
    left: usize,
    padding: usize,
    large: bool,
    last: bool,
}

impl Data {
    /// How much of it is waited for at a time, where that is worth it.
    fn awaited(&self) -> usize {
        if self.large { self.left } else { (self.left / 2).max(LEAST_MARK_BYTES).min(self.left) }
    }
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
        Self {
            wire: Wire::new(socket, patience),
            session: Session::new(),
            input: Input::new(),
            data: None,
            skip: 0,
            fault: frame::NO_ERROR,
        }
    }

    /// Whether another call may begin.
    pub(super) fn is_free(&self) -> bool {
        !self.wire.is_deaf() && self.data.is_none() && self.skip == 0 && self.session.is_free()
    }

    /// Silence counts from here: before, nothing was to be said.
    pub(super) fn begin(&mut self) {
        self.wire.begin();
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
                let bytes = if self.input.unread().is_empty() {
                    ready!(self.poll_payload(cx, &mut into[..want]))?
                } else {
                    self.input.copy(&mut into[..want])
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
        let there = self.input.unread().len();
        if let Some(data) = &mut self.data {
            let bytes = data.padding.min(there);
            data.padding -= bytes;
            self.input.advance(bytes);
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
            self.input.advance(bytes);
            return Ok((self.skip > 0).then_some(1));
        }
        let Some(head) = self.input.unread().first_chunk() else {
            return Ok(Some(HEAD_BYTES));
        };
        let head = FrameHead::read(*head);
        if head.kind == frame::DATA {
            return self.open_data(head);
        }
        let kept = Session::keeps(head)?;
        let Some(payload) = self.input.unread()[HEAD_BYTES..].get(..kept) else {
            return Ok(Some(HEAD_BYTES + kept));
        };
        self.session.frame(head, payload)?;
        self.input.advance(HEAD_BYTES + kept);
        self.skip = head.bytes - kept;
        Ok(None)
    }

    fn open_data(&mut self, head: FrameHead) -> Result<Option<usize>, Fault> {
        let padded = head.has(frame::PADDED);
        let needed = HEAD_BYTES + usize::from(padded && head.bytes > 0);
        if self.input.unread().len() < needed {
            return Ok(Some(needed));
        }
        self.session.data(head)?;
        let large = head.bytes >= LARGE_FRAME_BYTES;
        let last = head.has(frame::END_STREAM);
        let mut data = Data { left: head.bytes, padding: 0, large, last };
        if padded {
            // Checked above unless the frame is empty, which the next line refuses.
            data.padding = usize::from(self.input.unread()[needed - 1]);
            let rest = head.bytes.checked_sub(1 + data.padding);
            let what = || "DATA has more padding than bytes".to_owned();
            data.left = rest.ok_or_else(|| Fault { code: frame::PROTOCOL_ERROR, what: what() })?;
            self.session.take(1);
        }
        self.input.advance(needed);
        self.data = Some(data);
        Ok(None)
    }

    /// Reads until `needed` bytes of the input are there, or some of them.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        needed: usize,
    ) -> Poll<Result<(), ConnectionError>> {
        let room = self.input.room(needed);
        let bytes = ready!(self.wire.poll_read(cx, &mut self.session, &mut [], room, 1))?;
        self.input.filled(bytes);
        Poll::Ready(Ok(()))
    }

    /// Reads payload into its place, and what follows it into the empty input.
    fn poll_payload(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<Result<usize, ConnectionError>> {
        let awaited = self.data.as_ref().map_or(1, Data::awaited);
        let spare = self.input.spare();
        let bytes = ready!(self.wire.poll_read(cx, &mut self.session, into, spare, awaited))?;
        let payload = bytes.min(into.len());
        self.input.filled(bytes - payload);
        Poll::Ready(Ok(payload))
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
        if self.wire.is_deaf() {
            return;
        }
        self.session.leave(self.fault);
        self.wire.say_at_once(&self.session);
    }
}

#[cfg(test)]
mod tests;
