//! The targets hold for all that the fuzzer starts from: sound inputs, inputs
//! that it once found something with, and the malformed files that are kept.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use tpad_fuzz::TARGETS;

/// Where a target's inputs lie.
fn directories(target: &str) -> Vec<PathBuf> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    let hostile = match target {
        "revision" => Some("revision"),
        "index_header" => Some("header"),
        "index_segment" => Some("segment"),
        "shard_header" => Some("shard"),
        _ => None,
    };
    let hostile = hostile.map(|kind| fuzz.join("../tests/hostile/corpus").join(kind));
    [fuzz.join("corpus").join(target)].into_iter().chain(hostile).collect()
}

#[test]
fn every_kept_input_is_refused_or_right() {
    let mut failed = Vec::new();
    for (name, target) in TARGETS {
        let mut accepted = 0;
        for directory in directories(name) {
            let files = directory.read_dir().expect("the target's inputs are kept");
            let mut count = 0;
            for file in files {
                let path = file.expect("a file").path();
                let input = std::fs::read(&path).expect("a readable file");
                match catch_unwind(AssertUnwindSafe(|| target(&input))) {
                    Ok(right) => accepted += usize::from(right),
                    Err(_) => failed.push(path.display().to_string()),
                }
                count += 1;
            }
            assert!(count > 0, "{} is empty", directory.display());
        }
        // Else what holds for accepted inputs is never looked at.
        assert!(accepted > 0, "{name} refuses every input");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
