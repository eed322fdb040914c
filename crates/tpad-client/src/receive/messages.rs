//! Messages from a reply's bytes: small ones decoded, payload left where it
//! comes from until somebody has a place for it.

use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use prost::encoding::{WireType, decode_key, decode_varint, encoded_len_varint};
use prost::{DecodeError, Message};
use tonic::{Code, Status};
use tpad_proto::v1::{BlockPart, FetchExpertsResponse};

use super::{ReplyBytes, read};
use crate::Error;

/// Before each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Enough of a message to tell a payload: two keys of one byte, two lengths of
/// up to five.
const PEEK_BYTES: usize = 12;

/// The largest message that does not begin as a payload does: one that is a payload all the
/// same, of 4 MiB as clients take by default, or a block's description, which is far smaller.
const MESSAGE_BYTES: usize = (4 << 20) + 64;

/// The largest that is no payload: decoded, a list of empty tensors takes fifty times its
/// bytes. A block of a thousand tensors is described in 100 KiB.
const PART_BYTES: usize = 1 << 20;

/// Memory that a message which is decoded takes before any of it came.
const STEP_BYTES: usize = 64 << 10;

/// The fields on the way to a payload: `part`, then `payload`.
const PAYLOAD: [u32; 2] = [1, 3];

/// The next message of a fetch.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// This many bytes of an image, which [`Messages::receive`] hands out.
    Payload(u64),
    /// Anything else.
    Part(Option<BlockPart>),
}

/// Why a reply cannot be read on.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// How the call ended, or the connection.
    Status(Status),
    /// What is wrong with the bytes.
    Protocol(String),
    /// What is wrong with what they say.
    Refused(Error),
}

impl From<Error> for ReadError {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// A fetch's reply, message by message.
pub(crate) struct Messages {
    reply: Box<dyn ReplyBytes>,
    /// What was read of a payload to tell that it is one.
    peeked: BytesMut,
    /// What of the payload was not handed out.
    left: u64,
}

/// A reply that was given up.
struct Over;

impl ReplyBytes for Over {
    fn poll_read(&mut self, _: &mut Context<'_>, _: &mut [u8]) -> Poll<Result<usize, Status>> {
        Poll::Ready(Ok(0))
    }

    fn status(&mut self) -> Status {
        Status::cancelled("the reply was given up")
    }
}

impl From<Status> for ReadError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<DecodeError> for ReadError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(format!("a message does not decode: {error}"))
    }
}

impl Messages {
    pub(crate) fn of(reply: impl ReplyBytes + 'static) -> Self {
        Self { reply: Box::new(reply), peeked: BytesMut::new(), left: 0 }
    }

    /// The next message; `None` at the end, if the call went well. What is left of
    /// a payload has to be received before.
    pub(crate) async fn next(&mut self) -> Result<Option<Incoming>, ReadError> {
        let mut prefix = [0; PREFIX_BYTES];
        let first = read(&mut *self.reply, &mut prefix).await?;
        if first == 0 {
            let status = self.reply.status();
            return if status.code() == Code::Ok { Ok(None) } else { Err(status.into()) };
        }
        self.fill(&mut prefix[first..]).await?;
        let [compressed, length @ ..] = prefix;
        if compressed != 0 {
            return Err(ReadError::Protocol("a compressed message, which nobody asked for".into()));
        }
        // u32 fits wherever this runs.
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        self.peeked.clear();
        self.peeked.resize(length.min(PEEK_BYTES), 0);
        let mut peeked = std::mem::take(&mut self.peeked);
        self.fill(&mut peeked).await?;
        self.peeked = peeked;
        if let Some((head, payload)) = payload(&self.peeked, length as u64) {
            self.peeked.advance(head);
            self.left = payload;
            return Ok(Some(Incoming::Payload(payload)));
        }
        if length > MESSAGE_BYTES {
            let what = format!("a message of {length} bytes, at most {MESSAGE_BYTES} are taken");
            return Err(ReadError::Protocol(what));
        }
        let mut message = std::mem::take(&mut self.peeked);
        let mut there = message.len();
        if length > PART_BYTES && !is_payload(&message) {
            let what = format!("a description of {length} bytes, at most {PART_BYTES} are taken");
            return Err(ReadError::Protocol(what));
        }
        while there < length {
            // What a message claims is believed as it comes.
            let more = there.max(STEP_BYTES).min(length - there);
            message.resize(there + more, 0);
            self.fill(&mut message[there..]).await?;
            there += more;
        }
        Ok(Some(self.decoded(message)?))
    }

    /// A message that does not look like a payload. One that is all the same, written
    /// in another way, becomes one.
    fn decoded(&mut self, message: BytesMut) -> Result<Incoming, ReadError> {
        use tpad_proto::v1::block_part::Part;
        // The fetches' responses are alike.
        let mut part = FetchExpertsResponse::decode(message.freeze())?.part;
        if let Some(Part::Payload(payload)) = part.as_mut().and_then(|part| part.part.as_mut()) {
            let payload = std::mem::take(payload);
            self.left = payload.len() as u64;
            self.peeked = payload.into();
            return Ok(Incoming::Payload(self.left));
        }
        Ok(Incoming::Part(part))
    }

    /// Gives the reply up.
    pub(crate) fn close(&mut self) {
        self.reply = Box::new(Over);
    }

    /// What is left of the payload.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The payload's next bytes into `into`, which is not empty: some, not more than are left.
    pub(crate) async fn receive(&mut self, into: &mut [u8]) -> Result<usize, ReadError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let bytes = if self.peeked.is_empty() {
            let bytes = read(&mut *self.reply, &mut into[..most]).await?;
            if bytes == 0 && most > 0 {
                return Err(self.cut_off());
            }
            bytes
        } else {
            let bytes = most.min(self.peeked.len());
            self.peeked.copy_to_slice(&mut into[..bytes]);
            bytes
        };
        self.left -= bytes as u64;
        Ok(bytes)
    }

    async fn fill(&mut self, into: &mut [u8]) -> Result<(), ReadError> {
        let mut filled = 0;
        while filled < into.len() {
            match read(&mut *self.reply, &mut into[filled..]).await? {
                0 => return Err(self.cut_off()),
                bytes => filled += bytes,
            }
        }
        Ok(())
    }

    /// The reply ended within a message: by a status that says why, as a rule.
    fn cut_off(&mut self) -> ReadError {
        let status = self.reply.status();
        if status.code() == Code::Ok {
            ReadError::Protocol("the stream ended within a message".into())
        } else {
            ReadError::Status(status)
        }
    }
}

/// Whether a message's first field is `part`, and its first one `payload`, in whatever form.
fn is_payload(mut bytes: &[u8]) -> bool {
    PAYLOAD.into_iter().all(|field| {
        let key = decode_key(&mut bytes);
        key.is_ok_and(|key| key == (field, WireType::LengthDelimited))
            && decode_varint(&mut bytes).is_ok()
    })
}

/// If a message of `length` bytes that begins with `bytes` is a payload and no more: what
/// precedes the payload, and how long that is.
fn payload(mut bytes: &[u8], length: u64) -> Option<(usize, u64)> {
    let all = bytes.len();
    let mut left = length;
    for field in PAYLOAD {
        if decode_key(&mut bytes).ok()? != (field, WireType::LengthDelimited) {
            return None;
        }
        let inner = decode_varint(&mut bytes).ok()?;
        // In the shortest form, as everybody writes it; the others are decoded.
        let head = 1 + encoded_len_varint(inner) as u64;
        if left.checked_sub(head) != Some(inner) {
            return None;
        }
        left = inner;
    }
    Some((all - bytes.len(), left))
}

#[cfg(test)]
mod tests {
    use tpad_proto::v1::block_part::Part;

    use super::*;

    #[test]
    fn payloads_of_every_length_are_told() {
        for size in [0, 1, 127, 128, 16_383, 16_384, 1 << 20, (2 << 20) + 3] {
            let part = BlockPart { part: Some(Part::Payload(vec![7; size].into())) };
            let bytes = FetchExpertsResponse { part: Some(part) }.encode_to_vec();
            let peeked = &bytes[..bytes.len().min(PEEK_BYTES)];
            let told = payload(peeked, bytes.len() as u64).expect("a payload");
            assert_eq!(told, (bytes.len() - size, size as u64));
            assert_eq!(payload(peeked, bytes.len() as u64 + 1), None, "something follows");
            assert_eq!(payload(&peeked[..2], bytes.len() as u64), None);
        }
        let start = BlockPart { part: Some(Part::Start(Default::default())) };
        let bytes = FetchExpertsResponse { part: Some(start) }.encode_to_vec();
        assert_eq!(payload(&bytes, bytes.len() as u64), None);
    }
}
