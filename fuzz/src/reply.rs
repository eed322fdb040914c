//! What a daemon sends over HTTP/2 is refused, or it is blocks that were asked for, whole
//! and with right digests; it makes the client neither take memory nor say much.

use std::cell::RefCell;

use tokio::runtime::{Builder, Runtime};
use tpad_client::fuzzing::read_reply;

use crate::bounded_by;

/// What blocks are received into.
const MEMORY_BYTES: usize = 64 << 10;

/// A connection's own buffer, beside what the bytes may take.
const CONNECTION_BYTES: usize = 1024;

thread_local! {
    static MEMORY: RefCell<(Runtime, Vec<u8>)> = {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        RefCell::new((runtime, vec![0; MEMORY_BYTES]))
    };
}

/// Reads an input: whether it is accepted.
///
/// # Panics
/// When it is neither refused nor right.
pub fn reply(input: &[u8]) -> bool {
    MEMORY.with_borrow_mut(|(runtime, memory)| {
        let read = || runtime.block_on(read_reply(input, memory));
        match bounded_by(input.len() + CONNECTION_BYTES, read) {
            Ok(_) => true,
            Err(error) => {
                assert!(error.to_string().len() < 64 << 10, "a long refusal");
                false
            }
        }
    })
}
