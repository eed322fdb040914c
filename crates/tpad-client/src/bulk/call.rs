//! One call on a connection: its request on the way out, its reply's head and end.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tonic::Status;

use super::flow::Window;
use super::frame;
use super::header::Fields;
use crate::receive::code_of;

/// The longest name of a host.
pub(super) const AUTHORITY_BYTES: usize = 512;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) secure: bool,
    pub(super) authority: String,
    /// `/package.Service/Method`.
    pub(super) path: &'static str,
    /// `grpc-timeout`, if there is a deadline.
    pub(super) timeout: Option<String>,
    /// The message with its prefix.
    pub(super) body: Bytes,
}

/// A call's state.
#[derive(Debug)]
pub(super) struct CallState {
    pub(super) stream: u32,
    /// What is left of the request.
    body: Bytes,
    send_window: i64,
    pub(super) window: Window,
    /// The HTTP status and the fields that came with it.
    pub(super) head: Option<(u16, HeaderMap)>,
    trailers: Option<HeaderMap>,
    /// Nothing of the reply follows.
    pub(super) ended: bool,
    /// Why, if it did not end by itself.
    broken: Option<Broken>,
}

fn without_status() -> Status {
    Status::unknown("the reply ended without a status")
}

/// Why a call ended before its reply did.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    /// The daemon gave the call up.
    #[error("the daemon reset the stream: {}", frame::reason(*.0))]
    Reset(u32),
    /// The daemon is leaving and did not look at the call.
    #[error("the daemon is leaving ({}) and did not take the call", frame::reason(*.0))]
    TurnedAway(u32),
}

impl CallState {
    pub(super) fn new(stream: u32, body: Bytes, send_window: i64, window: u32) -> Self {
        Self {
            stream,
            body,
            send_window,
            window: Window::new(window),
            head: None,
            trailers: None,
            ended: false,
            broken: None,
        }
    }

    /// Whether the whole request was handed on.
    pub(super) fn is_sent(&self) -> bool {
        self.body.is_empty()
    }

    /// The next piece of the request that may be sent, and whether it is the last.
    pub(super) fn next_piece(&mut self, frame_bytes: usize, window: i64) -> Option<(Bytes, bool)> {
        let window = usize::try_from(window.min(self.send_window)).ok()?;
        let bytes = self.body.len().min(window).min(frame_bytes);
        if bytes == 0 {
            return None;
        }
        self.send_window -= bytes as i64;
        let piece = self.body.split_to(bytes);
        Some((piece, self.body.is_empty()))
    }

    /// Changes what may be sent; whether that can be.
    pub(super) fn raise(&mut self, change: i64) -> bool {
        self.send_window += change;
        self.send_window <= i64::from(frame::LARGEST_WINDOW)
    }

    /// A header block: a head, trailers, or both in one.
    pub(super) fn fields(&mut self, fields: Fields, end: bool) -> Result<(), &'static str> {
        match (&self.head, fields.status) {
            (None, None) => return Err("it begins without a status"),
            // More is coming: nothing that a call here asks for.
            (None, Some(100..200)) if end => return Err("it ends before it began"),
            (None, Some(100..200)) => return Ok(()),
            (None, Some(status)) => self.head = Some((status, fields.map)),
            (Some(_), Some(_)) => return Err("it has two heads"),
            (Some(_), None) if !end => return Err("its trailers are not its end"),
            (Some(_), None) => self.trailers = Some(fields.map),
        }
        self.ended |= end;
        Ok(())
    }

    /// The daemon gave up.
    pub(super) fn reset(&mut self, code: u32) {
        // After the end it only says that it wants no more of the request.
        if !self.ended {
            self.broken = Some(Broken::Reset(code));
            self.ended = true;
        }
        self.body = Bytes::new();
    }

    /// The daemon leaves without having looked at the call.
    pub(super) fn turned_away(&mut self, code: u32) {
        if !self.ended {
            self.broken = Some(Broken::TurnedAway(code));
            self.ended = true;
        }
        self.body = Bytes::new();
    }

    /// Whether the head has said that the reply is none of gRPC.
    pub(super) fn refused(&self) -> Option<Status> {
        let (status, head) = self.head.as_ref()?;
        let grpc = head
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if *status == StatusCode::OK && grpc {
            return None;
        }
        if let Some(status) = Status::from_header_map(head) {
            return Some(status);
        }
        Some(Status::new(
            code_of(*status),
            format!("HTTP status {status} in place of a gRPC reply"),
        ))
    }

    /// Whether the daemon gave the call back without having looked at it.
    pub(super) fn is_not_taken(&self) -> bool {
        let refused = Broken::Reset(frame::REFUSED_STREAM);
        self.broken
            .as_ref()
            .is_some_and(|broken| matches!(broken, Broken::TurnedAway(_)) || *broken == refused)
    }

    /// How the call ended, once it has.
    pub(super) fn status(&self) -> Status {
        if let Some(broken) = &self.broken {
            return Status::from_error(Box::new(broken.clone()));
        }
        let fields = self.trailers.as_ref().or(self.head.as_ref().map(|(_, fields)| fields));
        let Some(fields) = fields else { return without_status() };
        // Of a success nobody asks for more, and what would be read of it is a copy of all.
        if fields.get(Status::GRPC_STATUS).is_some_and(|code| code.as_bytes() == b"0") {
            return Status::ok("");
        }
        Status::from_header_map(fields).unwrap_or_else(without_status)
    }
}
