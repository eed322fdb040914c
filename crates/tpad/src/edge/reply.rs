//! A reply's body: passed on in pieces, only while there is room, and ended by its deadline.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::Status;

use super::account::Account;
use super::in_flight::{Share, Waiting};
use super::metrics::EdgeMetrics;
use super::refusal;
use super::stream::StreamState;

/// A reply on its way to HTTP/2.
pub(super) struct ReplyBody {
    inner: Option<tonic::body::Body>,
    /// What is left of a frame that is longer than a piece.
    rest: Bytes,
    /// The end, held back until the client has taken what is before it.
    end: Option<Option<HeaderMap>>,
    deadline: Option<Pin<Box<Sleep>>>,
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
        deadline: Option<Pin<Box<Sleep>>>,
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
        self.end = Some(Some(trailers(status)));
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
        if let Some(deadline) = &mut this.deadline
            && this.end.is_none()
            && deadline.as_mut().poll(cx).is_ready()
        {
            this.deadline = None;
            this.end_with(&refusal::deadline(this.account.id(), "before the reply was complete"));
        }
        loop {
            if let Some(end) = &mut this.end {
                if this.stream.holds_back(cx.waker()) {
                    return Poll::Pending;
                }
                let end = end.take();
                this.account.finish(end.as_ref());
                return Poll::Ready(end.map(|trailers| Ok(Frame::trailers(trailers))));
            }
            let room = ready!(this.share.poll_room(&this.stream, &mut this.waiting, cx));
            if !this.rest.is_empty() {
                return Poll::Ready(Some(Ok(this.next_piece(room))));
            }
            let Some(inner) = &mut this.inner else {
                this.end = Some(None);
                continue;
            };
            let frame = {
                let _entered = this.account.span().enter();
                Pin::new(inner).poll_frame(cx)
            };
            let Poll::Ready(frame) = frame else {
                // Only now: what it had to say of the drain itself is sent.
                if let Some(drain) = &mut this.drain
                    && drain.as_mut().poll(cx).is_ready()
                {
                    this.drain = None;
                    this.end_with(&refusal::draining(this.account.id()));
                    continue;
                }
                return Poll::Pending;
            };
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.rest = data,
                    Err(frame) => this.end = Some(frame.into_trailers().ok()),
                },
                Some(Err(status)) => this.end = Some(Some(trailers(&status))),
                None => this.end = Some(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        // HTTP/2 then ends the stream with what it has; not before the client took it.
        match &self.end {
            Some(None) => self.stream.outstanding_bytes() <= super::stream::HELD_BYTES,
            Some(Some(_)) => false,
            None => self.ended() && self.stream.outstanding_bytes() <= super::stream::HELD_BYTES,
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
