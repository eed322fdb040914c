//! A stream of messages as a body of frames.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::stream::StreamExt as _;
use http::HeaderMap;
use http_body::{Body, Frame};
use tonic::Status;

use super::message::{BulkMessage, encode};
use crate::grpc::expert::Reply;

/// Small messages that are ready at once share a frame up to here.
const HEAD_BYTES: usize = 16 << 10;

/// A payload up to here joins them: HTTP/2 sends a frame of each stream in turn, so a
/// small reply in two frames waits twice for its neighbours, and its copy costs less
/// than a frame of its own.
const COPIED_BYTES: usize = 8 << 10;

/// The messages of a fetch on their way to HTTP/2.
pub(super) struct Frames<T> {
    messages: Reply<T>,
    /// Headers and small messages that were not handed on yet.
    head: BytesMut,
    /// What follows the head: a piece of a slot.
    payload: Option<Bytes>,
    /// How the reply ends, once that is known.
    end: Option<Status>,
    over: bool,
}

impl<T> Frames<T> {
    pub(super) fn new(messages: Reply<T>) -> Self {
        Self { messages, head: BytesMut::new(), payload: None, end: None, over: false }
    }
}

impl<T: BulkMessage> Frames<T> {
    /// Takes in messages that are ready, until something is to be handed on.
    fn take_in(&mut self, cx: &mut Context<'_>) {
        while self.payload.is_none() && self.end.is_none() && self.head.len() < HEAD_BYTES {
            let Poll::Ready(message) = self.messages.poll_next_unpin(cx) else { return };
            match message.map(|message| message.and_then(|m| encode(m, &mut self.head))) {
                Some(Ok(None)) => {}
                Some(Ok(Some(payload))) if payload.len() <= COPIED_BYTES => {
                    self.head.extend_from_slice(&payload);
                }
                Some(Ok(Some(payload))) => self.payload = Some(payload),
                Some(Err(status)) => self.end = Some(status),
                None => self.end = Some(Status::ok("")),
            }
        }
    }
}

impl<T: BulkMessage> Body for Frames<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.over {
            return Poll::Ready(None);
        }
        this.take_in(cx);
        if !this.head.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(this.head.split().freeze()))));
        }
        if let Some(payload) = this.payload.take() {
            return Poll::Ready(Some(Ok(Frame::data(payload))));
        }
        let Some(status) = this.end.take() else { return Poll::Pending };
        this.over = true;
        let mut trailers = HeaderMap::with_capacity(4);
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}
