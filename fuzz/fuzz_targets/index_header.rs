//! See [`tpad_fuzz::index_header`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    tpad_fuzz::index_header(input);
});
