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

use super::account::Account;
use super::in_flight::{Share, Waiting};
use super::metrics::EdgeMetrics;
use super::refusal;
use super::stream::{HELD_BYTES, StreamState};

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
    /// What is left of a frame that is longer than a piece.
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
    stream: Arc<StreamState>,
    share: Arc<Share>,
    metrics: EdgeMetrics,
    account: Account,
}

impl ReplyBody {
    pub(super) fn new(
        inner: tonic::body::Body,
        deadline: Option<Deadline>,
        drain: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
        stream: Arc<StreamState>,
        share: Arc<Share>,
        metrics: EdgeMetrics,
        account: Account,
    ) -> Self {
        Self {
            inner: Some(inner),
            rest: Bytes::new(),
            end: None,
            cut_short: false,
            deadline,
            drain,
            waiting: None,
            stream,
            share,
            metrics,
            account,
        }
    }

    /// Whether the client has been sent everything but the end.
    fn ended(&self) -> bool {
        self.rest.is_empty() && self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    /// Whether the end may go before the client has taken the rest. What the account keeps is
    /// kept until then, and what is over time is to be cut if it is not taken.
    fn ends_early(&self) -> bool {
        self.stream.is_within_window() && !self.account.keeps() && !self.cut_short
    }

    fn next_piece(&mut self, room: usize) -> Frame<Bytes> {
        let piece = self.rest.split_to(self.rest.len().min(room));
        Frame::data(self.stream.send(piece, &self.share, &self.metrics))
    }

    /// Drops what is unsent and ends the reply with `status`.
    fn end_with(&mut self, status: &Status) {
        self.inner = None;
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
    fn poll_reply(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if self.end.is_some() {
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
            if !self.rest.is_empty() {
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
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.end.is_none() && this.deadline.as_ref().is_some_and(Deadline::passed) {
            this.end_late();
        }
        let polled = this.poll_reply(cx);
        if polled.is_pending()
            && this.end.is_none()
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
            Some(None) => self.stream.outstanding_bytes() <= HELD_BYTES,
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
