//! See [`tpad_fuzz::daemon_frames`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    tpad_fuzz::daemon_frames(input);
});
