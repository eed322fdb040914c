//! Synthetic checkpoints: readable by the safetensors library, the same for the
//! same seed, and nothing left behind when interrupted.

#[path = "import/small.rs"]
mod small;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use tokio_util::sync::CancellationToken;
use tpad_publish::{
    PRESETS, Phase, Progress, Silent, SynthDtype, SynthError, SynthSpec, parse_header, synthesize,
};

use crate::small::small;

fn make(spec: &SynthSpec, out: &Path) -> tpad_publish::Synthesized {
    synthesize(spec, out, &Silent, &CancellationToken::new()).expect("it is made")
}

/// Every tensor's type, shape and bytes, as the safetensors library reads them.
fn read(directory: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut tensors = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = fs::read(&path).expect("readable");
        for (name, view) in SafeTensors::deserialize(&bytes).expect("legal").iter() {
            let tensor =
                (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec());
            assert!(tensors.insert(name.to_owned(), tensor).is_none(), "{name} is there twice");
        }
    }
    tensors
}

#[test]
fn a_shape_whose_list_of_tensors_would_take_all_memory_is_refused() {
    for (layers, experts) in [(u32::MAX, 8), (2, u32::MAX), (u32::MAX, u32::MAX)] {
        let spec = SynthSpec { layers, experts, ..small("mixtral-8x7b") };
        assert!(matches!(spec.tensor_bytes(), Err(SynthError::Shape(_))), "{layers} x {experts}");
    }
}

/// One shard of it has a header of 16.03 MiB.
#[test]
fn the_preset_with_the_most_tensors_fits_one_shard_that_can_be_read() {
    let scratch = tempfile::tempdir().expect("scratch");
    let out = scratch.path().join("k");
    let mut spec = SynthSpec::preset("kimi-k2").expect("a preset").scaled(1e-5);
    spec.shard_bytes = u64::MAX;
    synthesize(&spec, &out, &Silent, &CancellationToken::new()).expect("made");
    let shard = std::fs::read(out.join("model.safetensors")).expect("one shard");
    let header = u64::from_le_bytes(shard[..8].try_into().expect("eight bytes"));
    let header = &shard[8..8 + usize::try_from(header).expect("it fits")];
    let tensors = parse_header(&"k".into(), header, shard.len() as u64);
    assert!(tensors.expect("accepted").len() > 100_000);
}

#[test]
fn every_preset_makes_what_the_safetensors_library_reads() {
    for preset in PRESETS {
        let scratch = tempfile::tempdir().expect("scratch");
        let out = scratch.path().join("made");
        let made = make(&small(preset), &out);
        let tensors = read(&out);
        assert_eq!(tensors.len(), made.tensors, "{preset}");
        let bytes: usize = tensors.values().map(|(_, _, bytes)| bytes.len()).sum();
        assert_eq!(bytes as u64, made.tensor_bytes, "{preset}");
        let config = fs::read(out.join("config.json")).expect("a configuration");
        let config: serde_json::Value = serde_json::from_slice(&config).expect("JSON");
        assert!(config["model_type"].is_string(), "{preset}");
        let zero = tensors.iter().find(|(_, (_, _, bytes))| bytes.iter().all(|byte| *byte == 0));
        assert_eq!(zero.map(|(name, _)| name), None, "{preset}");
    }
}

#[test]
fn presets_have_the_size_of_the_models_they_are_named_after() {
    // Parameters by the models' cards, in billions; one byte each for FP8.
    let cards = [
        ("mixtral-8x7b", 46.7, 2.0),
        ("mixtral-8x22b", 140.6, 2.0),
        ("olmoe-1b-7b", 6.9, 2.0),
        ("qwen3-30b-a3b", 30.5, 2.0),
        ("qwen3-235b-a22b", 235.0, 2.0),
        ("deepseek-v3", 685.0, 1.0),
        ("kimi-k2", 1026.0, 1.0),
    ];
    for (preset, billions, bytes_each) in cards {
        let bytes = SynthSpec::preset(preset).expect("a preset").tensor_bytes().expect("a size");
        let ratio = bytes as f64 / (billions * bytes_each * 1e9);
        assert!((0.97..1.04).contains(&ratio), "{preset}: {ratio}");
    }
}

#[test]
fn values_depend_on_the_seed_and_nothing_else() {
    let scratch = tempfile::tempdir().expect("scratch");
    let whole = small("qwen3-30b-a3b");
    let sharded = SynthSpec { shard_bytes: 20_000, ..whole.clone() };
    let other = SynthSpec { seed: 1, ..whole.clone() };
    let [one, many, different] = ["one", "many", "different"].map(|name| scratch.path().join(name));
    assert_eq!(make(&whole, &one).shards, 1);
    assert!(make(&sharded, &many).shards > 3);
    make(&other, &different);
    assert_eq!(read(&one), read(&many));
    assert_ne!(read(&one), read(&different));
    assert!(many.join("model.safetensors.index.json").exists());
}

#[test]
fn an_interruption_leaves_nothing() {
    struct CancelAt(u64, std::sync::atomic::AtomicU64, CancellationToken);
    impl Progress for CancelAt {
        fn begin(&self, _phase: Phase, _total: u64) {}
        fn advance(&self, done: u64) {
            let before = self.1.fetch_add(done, std::sync::atomic::Ordering::Relaxed);
            if before + done >= self.0 {
                self.2.cancel();
            }
        }
    }
    let scratch = tempfile::tempdir().expect("scratch");
    let spec = SynthSpec { shard_bytes: 20_000, ..small("mixtral-8x7b") };
    let stop = CancellationToken::new();
    let half = spec.tensor_bytes().expect("a size") / 2;
    let progress = CancelAt(half, 0.into(), stop.clone());
    let result = synthesize(&spec, &scratch.path().join("made"), &progress, &stop);
    assert!(matches!(result, Err(SynthError::Cancelled)), "{result:?}");
    assert_eq!(fs::read_dir(scratch.path()).expect("scratch").count(), 0);
}

#[test]
fn an_occupied_directory_is_left_alone() {
    let scratch = tempfile::tempdir().expect("scratch");
    fs::write(scratch.path().join("mine"), "x").expect("written");
    let result =
        synthesize(&small("mixtral-8x7b"), scratch.path(), &Silent, &CancellationToken::new());
    assert!(matches!(result, Err(SynthError::Occupied(_))), "{result:?}");
    assert_eq!(fs::read(scratch.path().join("mine")).expect("still there"), b"x");
}

#[test]
fn shapes_that_no_model_has_are_refused_with_the_reason() {
    let good = small("mixtral-8x7b");
    let table = [
        (SynthSpec { experts: 0, ..good.clone() }, "experts may not be 0"),
        (SynthSpec { experts_per_token: 9, ..good.clone() }, "9 of 8 experts"),
        (SynthSpec { groups: 3, ..good.clone() }, "3 groups"),
        (SynthSpec { dense_layers: 2, ..good.clone() }, "leave none with experts"),
        (SynthSpec { dtype: SynthDtype::Mxfp4, ..good.clone() }, "MXFP4"),
        (SynthSpec { hidden: u64::MAX / 2, ..good.clone() }, "overflows"),
    ];
    for (spec, expected) in table {
        let error = spec.tensor_bytes().expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let error = SynthSpec::preset("gpt-5").expect_err("unknown").to_string();
    assert!(error.contains("qwen3-30b-a3b"), "{error}");
}
