//! See [`tpad_fuzz::reply`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    tpad_fuzz::reply(input);
});
