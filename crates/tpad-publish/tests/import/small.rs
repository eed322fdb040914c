//! Small checkpoints.

use tpad_publish::SynthSpec;

/// A preset shrunk to a few hundred kilobytes.
pub(crate) fn small(preset: &str) -> SynthSpec {
    let spec = SynthSpec::preset(preset).expect("a preset").scaled(0.0001);
    SynthSpec {
        layers: 2.max(spec.dense_layers + 1),
        experts: spec.experts.min(8),
        experts_per_token: 2,
        groups: spec.groups.min(2),
        groups_per_token: 1,
        vocab: 128,
        heads: 4,
        kv_heads: 2,
        ..spec
    }
}
