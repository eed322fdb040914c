//! The index object's bytes (`proto/tpad/v1/index.proto`).
//!
//! An object is a preamble, a header and segments. Its name is the digest of
//! preamble and header, and the header holds each segment's digest: a segment
//! can be read and verified alone, when its layer is first needed.

mod bound;
mod convert;
mod decode;
mod encode;

#[expect(unreachable_pub, reason = "generated from the proto file, which is documented")]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/tpad.v1.rs"));
}

pub use decode::{IndexError, MAX_HEADER_BYTES, MAX_SEGMENT_BYTES, decode_header, decode_segment};
pub use encode::{EncodedIndex, encode};

/// What an index object starts with.
pub const MAGIC: &[u8; 8] = b"TPADIDX1";

/// Bytes before the header: the magic and the header's length.
pub const PREAMBLE_BYTES: usize = 12;
