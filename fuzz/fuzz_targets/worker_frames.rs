//! See [`tpad_fuzz::worker_frames`].

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    tpad_fuzz::worker_frames(input);
});
