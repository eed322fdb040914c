//! Every family of checkpoints in the Hugging Face layout, recognised from its
//! headers alone.

#[path = "layout/fixture.rs"]
mod fixture;
#[path = "layout/hostile.rs"]
mod hostile;
#[path = "layout/plans.rs"]
mod plans;
#[path = "layout/refuse.rs"]
mod refuse;
#[path = "layout/saved.rs"]
mod saved;

use std::collections::BTreeMap;
use std::path::Path;

use fixture::{Fixture, describe};
use tpad_manifest::TensorRecord;
use tpad_publish::{map, recognise};

/// Every fixture, by the name of its file.
fn fixtures() -> BTreeMap<String, Fixture> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layouts");
    let mut fixtures = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("the fixtures") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        fixtures.insert(name.clone(), Fixture::load(&name));
    }
    fixtures
}

#[test]
fn every_family_gives_exactly_the_blocks_that_were_written_down() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 40, "the fixtures are there: {}", fixtures.len());
    let mut wrong = Vec::new();
    for (name, fixture) in &fixtures {
        let text = match recognise(&fixture.tensors, &fixture.config) {
            Ok(checkpoint) => describe(&checkpoint, &fixture.tensors),
            Err(error) => format!("error: {error}\n"),
        };
        if text != fixture.expected {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.txt"));
            std::fs::write(&path, &text).expect("the target folder takes files");
            wrong.push(format!("{name} differs: what was recognised is in {}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_byte_of_every_tensor_is_in_exactly_one_block() {
    for (name, fixture) in fixtures() {
        let Ok(checkpoint) = recognise(&fixture.tensors, &fixture.config) else { continue };
        let mapping = map(&checkpoint, None).expect("a default mapping");
        let mut covered: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
        let mut add = |record: &'_ TensorRecord| {
            let tensor = fixture.tensors.iter().find(|t| t.name == record.name).expect("known");
            // A single value that all experts share is in each of their blocks.
            let shared = tensor.shape.iter().all(|dim| *dim == 1);
            let ranges = covered.entry(&tensor.name).or_default();
            for range in &record.ranges {
                let piece = (range.offset, range.bytes);
                if !shared || !ranges.contains(&piece) {
                    ranges.push(piece);
                }
            }
        };
        for layer in mapping.tiers.iter().flat_map(|tier| &tier.layers) {
            let experts = layer.groups.iter().flatten();
            let blocks = experts.chain(&layer.router);
            blocks.flat_map(|block| &block.tensors).for_each(&mut add);
        }
        mapping.dense.iter().flat_map(|block| &block.tensors).for_each(&mut add);
        for tensor in &fixture.tensors {
            let mut ranges = covered.remove(&*tensor.name).unwrap_or_default();
            ranges.sort_unstable();
            let mut end = tensor.offset;
            for (offset, bytes) in ranges {
                assert_eq!(offset, end, "{name}: {} has a hole or an overlap", tensor.name);
                end += bytes;
            }
            assert_eq!(end, tensor.offset + tensor.bytes, "{name}: {} is whole", tensor.name);
        }
    }
}
