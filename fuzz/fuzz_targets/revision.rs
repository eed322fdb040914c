//! See [`tpad_fuzz::revision`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    tpad_fuzz::revision(input);
});
