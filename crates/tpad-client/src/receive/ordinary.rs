//! Replies over tonic's channel: hyper's frames, taken one by one and never joined.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::HeaderMap;
use http_body::Body as _;
use tonic::body::Body;
use tonic::client::GrpcService as _;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::ReplyBytes;

/// A reply over a shared connection.
pub(crate) struct OrdinaryReply {
    body: Body,
    /// What of the last frame was not taken.
    frame: Bytes,
    trailers: Option<HeaderMap>,
}

impl OrdinaryReply {
    /// Makes a call of a method that takes one message and waits until its reply begins.
    pub(crate) async fn call(
        mut channel: Channel,
        request: http::Request<Body>,
    ) -> Result<Self, Status> {
        let failed = |error: tonic::transport::Error| Status::from_error(Box::new(error));
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await.map_err(failed)?;
        let (head, body) = channel.call(request).await.map_err(failed)?.into_parts();
        if let Some(status) = Status::from_header_map(&head.headers) {
            if status.code() != Code::Ok {
                return Err(status);
            }
            return Ok(Self { body, frame: Bytes::new(), trailers: Some(head.headers) });
        }
        if head.status != http::StatusCode::OK {
            let text = format!("HTTP status {} in place of a gRPC reply", head.status);
            return Err(Status::new(super::code_of(head.status.as_u16()), text));
        }
        Ok(Self { body, frame: Bytes::new(), trailers: None })
    }
}

impl ReplyBytes for OrdinaryReply {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, Status>> {
        while self.frame.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(0)),
                Some(Err(status)) => return Poll::Ready(Err(status)),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.frame = data,
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
        let bytes = into.len().min(self.frame.len());
        self.frame.copy_to_slice(&mut into[..bytes]);
        Poll::Ready(Ok(bytes))
    }

    fn status(&mut self) -> Status {
        let status = self.trailers.as_ref().and_then(Status::from_header_map);
        status.unwrap_or_else(|| Status::unknown("the reply ended without a status"))
    }
}
