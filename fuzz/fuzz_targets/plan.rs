//! See [`tpad_fuzz::plan`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    tpad_fuzz::plan(input);
});
