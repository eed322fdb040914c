//! A reply's body: passed on in pieces, only while there is room, and ended by its deadline.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

pub(super) use self::data::Data;
use super::account::Account;
use super::in_flight::{PIECE_BYTES, Sends, Share, Waiting};
use super::refusal;
use super::stream::{HELD_BYTES, StreamState};

mod data;

/// What is this short is handed on with what follows it, if that is there, to a client that
/// reads within frames.
const HEAD_BYTES: usize = 16 << 10;

/// When a reply is ended. Most are over before anybody waits: those set no timer.
pub(super) struct Deadline {
    at: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub(super) fn new(at: Instant) -> Self {
        Self { at, timer: None }
    }

    fn passed(&self) -> bool {
        Instant::now() >= self.at
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let at = self.at;
        self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at))).as_mut().poll(cx)
    }
}

/// A reply on its way to HTTP/2.
pub(super) struct ReplyBody {
    inner: Option<tonic::body::Body>,
    /// What is short and came last.
    head: Bytes,
    /// What is left of what came after it.
    rest: Bytes,
    /// The end, held back until the client has taken what is before it, if it [may not
    /// go](Self::ends_early) before.
    end: Option<Option<HeaderMap>>,
    /// It ended before all of it was there.
    cut_short: bool,
    deadline: Option<Deadline>,
    /// For a reply that has no end by nature.
    drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    waiting: Option<Waiting>,
    /// While it has something to send.
    sends: Option<Sends>,
    stream: Arc<StreamState>,
    share: Arc<Share>,
    account: Account,
}

impl ReplyBody {
    pub(super) fn new(
        inner: tonic::body::Body,
        deadline: Option<Deadline>,
        drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
        stream: Arc<StreamState>,
        share: Arc<Share>,
        account: Account,
    ) -> Self {
        Self {
            inner: Some(inner),
            head: Bytes::new(),
            rest: Bytes::new(),
            end: None,
            cut_short: false,
            deadline,
            drain,
            waiting: None,
            sends: None,
            stream,
            share,
            account,
        }
    }

    /// Whether the client has been sent everything but the end.
    fn ended(&self) -> bool {
        self.unsent() == 0 && self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Whether the end may go before the client has taken the rest. What the account keeps is
    /// kept until then, and what is over time is to be cut if it is not taken.
    fn ends_early(&self) -> bool {
        self.stream.is_within_window() && !self.account.keeps() && !self.cut_short
    }

    /// Whether there is or may be something to send before the end.
    fn goes_on(&self) -> bool {
        self.end.is_none() || self.unsent() > 0
    }

    fn unsent(&self) -> usize {
        self.head.len() + self.rest.len()
    }

    /// The head, and what there is room for of the rest; all of it if what is left is short.
    fn next_piece(&mut self, room: usize) -> Frame<Data> {
        self.sends.get_or_insert_with(|| self.share.sends());
        let head = std::mem::take(&mut self.head);
        let most = room.saturating_sub(head.len()).max(1);
        let left = self.rest.len();
        // What is bounded by less is not exceeded.
        let crumb = if room as u64 >= PIECE_BYTES { HEAD_BYTES } else { 0 };
        let payload = self.rest.split_to(if left <= most + crumb { left } else { most });
        Frame::data(Data::new(head, payload, &self.stream, &self.share))
    }

    /// Drops what is unsent and ends the reply with `status`.
    fn end_with(&mut self, status: &Status) {
        self.inner = None;
        self.head = Bytes::new();
        self.rest = Bytes::new();
        // A wake-up that comes now is another's.
        self.waiting = None;
        self.cut_short = true;
        self.end = Some(Some(trailers(status)));
    }

    fn end_late(&mut self) {
        self.deadline = None;
        self.end_with(&refusal::deadline(self.account.id(), "before the reply was complete"));
    }

    /// The next frame, whatever the time is.
    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Data>, Status>>> {
        loop {
            if self.end.is_some() && self.unsent() == 0 {
                if self.ends_early() {
                    self.stream.end_early();
                } else if self.stream.holds_back(cx.waker()) {
                    return Poll::Pending;
                }
                let end = self.end.as_mut().and_then(Option::take);
                self.account.finish(end.as_ref());
                return Poll::Ready(end.map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let room = ready!(self.share.poll_room(&self.stream, &mut self.waiting, cx));
            if !self.rest.is_empty() || self.end.is_some() {
                return Poll::Ready(Some(Ok(self.next_piece(room))));
            }
            let Some(inner) = &mut self.inner else {
                self.end = Some(None);
                continue;
            };
            let frame = {
                let _entered = self.account.span().enter();
                Pin::new(inner).poll_frame(cx)
            };
            let Poll::Ready(frame) = frame else {
                if !self.head.is_empty() {
                    return Poll::Ready(Some(Ok(self.next_piece(room))));
                }
                self.sends = None;
                // Only now: what it had to say of the drain itself is sent.
                if let Some(drain) = &mut self.drain
                    && drain.as_mut().poll(cx).is_ready()
                {
                    self.drain = None;
                    self.end_with(&refusal::draining(self.account.id()));
                    continue;
                }
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data)
                        if self.head.is_empty()
                            && data.len() <= HEAD_BYTES
                            && self.stream.reads_within_frames() =>
                    {
                        self.head = data;
                    }
                    Ok(data) => self.rest = data,
                    Err(frame) => self.end = Some(frame.into_trailers().ok()),
                },
                Some(Err(status)) => self.end = Some(Some(trailers(&status))),
                None => self.end = Some(None),
            }
        }
    }
}

impl Body for ReplyBody {
    type Data = Data;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, Status>>> {
        let this = self.get_mut();
        if this.goes_on() && this.deadline.as_ref().is_some_and(Deadline::passed) {
            this.end_late();
        }
        let polled = this.poll_reply(cx);
        if polled.is_pending()
            && this.goes_on()
            && let Some(deadline) = &mut this.deadline
            && deadline.poll(cx).is_ready()
        {
            this.end_late();
            return this.poll_reply(cx);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        // HTTP/2 then ends the stream with what it has; not before the client took it.
        match &self.end {
            Some(None) => self.unsent() == 0 && self.stream.outstanding_bytes() <= HELD_BYTES,
            Some(Some(_)) => false,
            None => self.ended() && self.stream.outstanding_bytes() <= HELD_BYTES,
        }
    }
}

/// A status as the trailers that end a reply.
fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(4);
    if status.add_header(&mut trailers).is_err() {
        // A message that is no header value: the code alone tells what to do.
        let bare = Status::new(status.code(), "");
        trailers.clear();
        let _ = bare.add_header(&mut trailers);
    }
    trailers
}

#[cfg(test)]
mod tests;
