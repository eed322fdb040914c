//! What fuzzers run: each target reads an input and fails when it is neither
//! refused nor right. `fuzz_targets` puts the fuzzer around them; the tests run
//! them over what the fuzzer started from and what it once found.

mod daemon_frames;
mod index_header;
mod index_segment;
mod plan;
mod reply;
mod revision;
mod shard_header;
mod worker_frames;

use peak_alloc::PeakAlloc;

pub use daemon_frames::daemon_frames;
pub use index_header::index_header;
pub use index_segment::index_segment;
pub use plan::plan;
pub use reply::reply;
pub use revision::revision;
pub use shard_header::shard_header;
pub use worker_frames::worker_frames;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What reading anything may take: parsers' own tables, messages.
const FLAT_BYTES: usize = 1 << 20;

/// What each byte of an input may become. The worst is an empty message in an
/// index: two bytes on the wire, a hundred in memory, in a list that doubles.
const BYTES_PER_BYTE: usize = 512;

/// Reads an input: whether it is accepted. Panics when it is neither refused nor
/// right.
pub type Target = fn(&[u8]) -> bool;

/// Every target, by its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("revision", revision),
    ("index_header", index_header),
    ("index_segment", index_segment),
    ("shard_header", shard_header),
    ("plan", plan),
    ("reply", reply),
    ("worker_frames", worker_frames),
    ("daemon_frames", daemon_frames),
];

/// Runs `read` on an input and fails when it allocates out of proportion.
fn bounded<T>(input: &[u8], read: impl FnOnce() -> T) -> T {
    bounded_by(input.len(), read)
}

/// Runs `read`, which is given `bytes` bytes.
fn bounded_by<T>(bytes: usize, read: impl FnOnce() -> T) -> T {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let result = read();
    let taken = MEMORY.peak_usage().saturating_sub(before);
    let most = FLAT_BYTES + bytes * BYTES_PER_BYTE;
    assert!(taken <= most, "{bytes} bytes of input took {taken} bytes of memory");
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_out_of_proportion_fails() {
        assert_eq!(bounded(b"", || vec![0u8; FLAT_BYTES / 2].len()), FLAT_BYTES / 2);
        let greedy = || bounded(b"", || vec![0u8; FLAT_BYTES * 2].len());
        assert!(std::panic::catch_unwind(greedy).is_err());
    }
}
