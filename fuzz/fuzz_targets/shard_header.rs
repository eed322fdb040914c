//! See [`tpad_fuzz::shard_header`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    tpad_fuzz::shard_header(input);
});
