//! The Tiered Parameter Architecture's words as types: ids, keys, blocks and
//! their images, the manifest document and the index, with every rule that can
//! be checked without reading anything.
//!
//! This crate is pure: no I/O, no async, no wire format. What it accepts from
//! outside it bounds and checks, and it reports every problem with its place.

mod block;
mod digest;
mod dtype;
mod id;
mod image;
mod key;
mod tensor;

pub use block::{BlockRecord, Source};
pub use digest::{BlockId, Digest, DigestParseError};
pub use dtype::{Dtype, SizeError};
pub use id::{TierId, TierIdError};
pub use image::{IMAGE_ALIGN_BYTES, ImageLayout};
pub use key::{BlockKey, ExpertKey};
pub use tensor::{ByteRange, GateUp, Orientation, Part, Projection, Role, TensorRecord};
