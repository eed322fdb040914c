//! A model of large blocks, made and imported by `tpactl`, and requests for it.

use std::path::Path;
use std::process::Command;

use prost::Message as _;
use tpad_proto::v1;

use crate::checkpoint::said;
use crate::tools;

/// The name that requests use.
pub const MODEL: &str = "bulk";

/// The method that is asked for blocks.
pub const FETCH_EXPERTS: &str = "/tpad.v1.ExpertService/FetchExperts";

/// A dense tensor of exactly 4 KiB: a norm of the hidden size in BF16.
pub const SMALL_TENSOR: &str = "model.norm.weight";

const EXPERTS: u32 = 8;
const LAYERS: u32 = 2;

/// Makes the model below `directory` and returns the `[[models]]` section that
/// serves it: 16 blocks of 15.75 MiB.
///
/// # Panics
/// When it cannot be made or imported.
#[must_use]
pub fn section(directory: &Path) -> String {
    let root = directory.join(MODEL);
    let mut synth = Command::new(tools::program("tpactl"));
    synth.args(["synth", "--preset", "qwen3-30b-a3b", "--experts-per-token", "2"]);
    synth.args(["--hidden", "2048", "--intermediate", "1344", "--vocab", "1024"]);
    synth.arg("--layers").arg(LAYERS.to_string()).arg("--experts").arg(EXPERTS.to_string());
    synth.arg(&root);
    let mut import = Command::new(tools::program("tpactl"));
    import.arg("import").arg(&root).args(["--model", MODEL]);
    import.arg("--state-dir").arg(directory.join("import-state"));
    for step in [&mut synth, &mut import] {
        let output = step.output().expect("tpactl runs");
        assert!(output.status.success(), "{}", said(&output));
    }
    format!("[[models]]\nname = \"{MODEL}\"\nroot = \"{}\"\n", root.display())
}

/// Asks for the `n`th block; they repeat.
#[must_use]
pub fn one_block(n: u64) -> Vec<u8> {
    let expert = u32::try_from(n % u64::from(EXPERTS)).unwrap_or_default();
    let layer = u32::try_from(n / u64::from(EXPERTS) % u64::from(LAYERS)).unwrap_or_default();
    let key = v1::ExpertKey { tier: "base".to_owned(), group: 0, expert };
    let request = v1::FetchExpertsRequest {
        model: MODEL.to_owned(),
        blocks: vec![v1::ExpertAtLayer { key: Some(key), layer }],
        ..v1::FetchExpertsRequest::default()
    };
    request.encode_to_vec()
}

/// Asks for all of them.
#[must_use]
pub fn all_blocks() -> Vec<u8> {
    let request = v1::FetchExpertsRequest {
        model: MODEL.to_owned(),
        tiers: vec!["base".to_owned()],
        ..v1::FetchExpertsRequest::default()
    };
    request.encode_to_vec()
}
