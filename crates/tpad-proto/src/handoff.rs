//! What is said on the handoff socket, and how it goes over it: frames, and file
//! descriptors beside them.
//!
//! Reads and writes here take what the socket takes at once; whoever waits for it
//! does that elsewhere.

mod frame;

pub use frame::{DAEMON_FRAME_BYTES, FrameError, FrameReader, FrameWriter, WORKER_FRAME_BYTES};

/// The version of the protocol that `proto/tpad/handoff/v1` is.
pub const PROTOCOL: u32 = 1;

/// The messages of package `tpad.handoff.v1`.
#[expect(missing_docs, reason = "generated: the proto file documents what needs it")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/tpad.handoff.v1.rs"));
}
