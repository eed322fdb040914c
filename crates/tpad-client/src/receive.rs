//! What comes back from a call that streams: bytes in order, whoever receives them.

mod messages;
mod ordinary;

use std::future::poll_fn;
use std::task::{Context, Poll};

use tonic::{Code, Status};

pub(crate) use self::messages::{Incoming, Messages, ReadError};
pub(crate) use self::ordinary::OrdinaryReply;

/// A reply's body, as gRPC writes it: messages with their prefixes.
pub(crate) trait ReplyBytes: Send {
    /// Receives the next bytes into `into`, which is not empty: how many, and none at
    /// the end. An error is this side's: the connection broke, or the other side its rules.
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, Status>>;

    /// After the end: how the call ended.
    fn status(&mut self) -> Status;
}

/// Receives some bytes.
async fn read(reply: &mut dyn ReplyBytes, into: &mut [u8]) -> Result<usize, Status> {
    poll_fn(|cx| reply.poll_read(cx, into)).await
}

/// What gRPC makes of a reply that comes from something in between.
pub(crate) fn code_of(status: u16) -> Code {
    match status {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}
