//! Messages of a fetch on the wire: their headers apart from the payload.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tpad_proto::v1::{
    BlockPart, FetchDenseResponse, FetchExpertsResponse, FetchFileResponse, FetchRoutersResponse,
    block_part, fetch_file_response,
};

/// What precedes each message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// A message that either is a payload or is small.
pub(super) trait BulkMessage: Message + 'static {
    /// The payload's field, from the outermost message inwards.
    const PAYLOAD: &'static [u32];

    /// Takes the payload out, if that is what the message is.
    fn take_payload(&mut self) -> Option<Bytes>;
}

/// Appends `message` to `head`, prefix and all. Its payload is left out, returned,
/// and has to follow.
pub(super) fn encode<T: BulkMessage>(
    mut message: T,
    head: &mut BytesMut,
) -> Result<Option<Bytes>, Status> {
    let too_long = |_| Status::internal("a message is longer than gRPC can say");
    let Some(payload) = message.take_payload() else {
        let length = message.encoded_len();
        prefix(length, head).map_err(too_long)?;
        message.encode_raw(head);
        return Ok(None);
    };
    // From the inside out: what each field holds.
    let mut lengths = [0u64; 4];
    let mut length = payload.len() as u64;
    for (level, field) in T::PAYLOAD.iter().enumerate().rev() {
        lengths[level] = length;
        length += (key_len(*field) + encoded_len_varint(length)) as u64;
    }
    prefix(usize::try_from(length).unwrap_or(usize::MAX), head).map_err(too_long)?;
    for (field, length) in T::PAYLOAD.iter().zip(lengths) {
        encode_key(*field, WireType::LengthDelimited, head);
        encode_varint(length, head);
    }
    Ok(Some(payload))
}

fn prefix(length: usize, head: &mut BytesMut) -> Result<(), std::num::TryFromIntError> {
    let length = u32::try_from(length)?;
    head.reserve(PREFIX_BYTES);
    head.put_u8(0);
    head.put_u32(length);
    Ok(())
}

fn payload_of(part: &mut Option<BlockPart>) -> Option<Bytes> {
    match part.as_mut()?.part.as_mut()? {
        block_part::Part::Payload(payload) => Some(std::mem::take(payload)),
        block_part::Part::Start(_) | block_part::Part::Block(_) => None,
    }
}

macro_rules! of_blocks {
    ($($message:ty),+) => {
        $(impl BulkMessage for $message {
            // part, payload
            const PAYLOAD: &'static [u32] = &[1, 3];

            fn take_payload(&mut self) -> Option<Bytes> {
                payload_of(&mut self.part)
            }
        })+
    };
}

of_blocks!(FetchExpertsResponse, FetchRoutersResponse, FetchDenseResponse);

impl BulkMessage for FetchFileResponse {
    const PAYLOAD: &'static [u32] = &[2];

    fn take_payload(&mut self) -> Option<Bytes> {
        match self.part.as_mut()? {
            fetch_file_response::Part::Payload(payload) => Some(std::mem::take(payload)),
            fetch_file_response::Part::Start(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tpad_proto::v1::{Block, FileStart, StreamStart};

    use super::*;

    /// As the generated code writes it.
    fn generated(message: &impl Message) -> Vec<u8> {
        let body = message.encode_to_vec();
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(body.len()).expect("short").to_be_bytes());
        bytes.extend(body);
        bytes
    }

    /// Holds one message to the generated code; the payload's address if it has one.
    fn same<T: BulkMessage + Clone>(message: T) -> Option<*const u8> {
        let mut head = BytesMut::from(&b"before"[..]);
        let expected = generated(&message);
        let payload = encode(message, &mut head).expect("short");
        let rest = payload.as_deref().unwrap_or_default();
        assert_eq!([&head[6..], rest].concat(), expected);
        payload.map(|payload| payload.as_ptr())
    }

    #[test]
    fn on_the_wire_it_is_what_the_generated_code_writes() {
        let sizes = [0, 1, 100, 127, 128, 129, 16_383, 16_384, 1 << 20, (2 << 20) + 1];
        for size in sizes {
            let payload = Bytes::from(vec![7; size]);
            let at = payload.as_ptr();
            let part = BlockPart { part: Some(block_part::Part::Payload(payload.clone())) };
            let copied = [
                same(FetchExpertsResponse { part: Some(part.clone()) }),
                same(FetchRoutersResponse { part: Some(part.clone()) }),
                same(FetchDenseResponse { part: Some(part) }),
                same(FetchFileResponse { part: Some(fetch_file_response::Part::Payload(payload)) }),
            ];
            assert_eq!(copied, [Some(at); 4], "{size} bytes are where they were");
        }
        let start = StreamStart { model: "m".into(), revision: 3, ..StreamStart::default() };
        let block = Block { image_bytes: 5, block_id: vec![1; 32].into(), ..Block::default() };
        let parts = [block_part::Part::Start(start), block_part::Part::Block(block)];
        for part in parts.map(Some).into_iter().chain([None]) {
            assert_eq!(same(FetchExpertsResponse { part: Some(BlockPart { part }) }), None);
        }
        assert_eq!(same(FetchExpertsResponse { part: None }), None);
        let start = FileStart { name: "config.json".into(), bytes: 9, ..FileStart::default() };
        same(FetchFileResponse { part: Some(fetch_file_response::Part::Start(start)) });
    }
}
