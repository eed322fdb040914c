//! Why a checkpoint's layout is refused.

use std::sync::Arc;

use tpad_manifest::SizeError;

/// Why a checkpoint's layout is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// No tensor looks like an expert's.
    #[error(
        "no experts in a known layout among {tensors} tensors, whose names look like: {}",
        sample.join(", ")
    )]
    Unrecognised {
        /// How many tensors there are.
        tensors: usize,
        /// Some of their names, with `N` for numbers.
        sample: Vec<String>,
    },
    /// Two tensors have one name.
    #[error("{name} is in {first} and again in {second}")]
    Duplicate {
        /// The name.
        name: Arc<str>,
        /// The shard that holds it.
        first: Arc<str>,
        /// The shard that holds it too.
        second: Arc<str>,
    },
    /// A tensor has no size.
    #[error("{name}: {source}")]
    Size {
        /// The tensor.
        name: Arc<str>,
        /// Why.
        #[source]
        source: SizeError,
    },
    /// A tensor's place contradicts its shape.
    #[error("{name}: {bytes} bytes at {offset} are not what its type and shape take, {expected}")]
    Extent {
        /// The tensor.
        name: Arc<str>,
        /// The first byte.
        offset: u64,
        /// The bytes that it is said to have.
        bytes: u64,
        /// The bytes that its type and shape take.
        expected: u64,
    },
    /// A tensor lies among experts and nothing says what it is.
    #[error("{name} lies among experts, but its part in one is not known")]
    UnknownPart {
        /// The tensor.
        name: Arc<str>,
    },
    /// Two tensors claim one part of an expert.
    #[error("{first} and {second} claim the same part of one expert")]
    TwoTensors {
        /// One tensor.
        first: String,
        /// The other.
        second: String,
    },
    /// A layer has two expert sets.
    #[error(
        "layer {layer} has two sets of experts, {first} and {second}: a key names one expert of a \
         layer, so only one set can be served"
    )]
    TwoSets {
        /// The layer.
        layer: u32,
        /// One set's module.
        first: String,
        /// The other's.
        second: String,
    },
    /// Layer numbers do not fit 32 bits.
    #[error("the layer of {module} has no number that fits 32 bits")]
    LayerNumber {
        /// The module.
        module: String,
    },
    /// An expert's number is skipped.
    #[error("layer {layer}: {module} has experts up to {highest}, but no expert {missing}")]
    ExpertGap {
        /// The layer.
        layer: u32,
        /// The module that holds the experts.
        module: String,
        /// The lowest number that is missing.
        missing: u32,
        /// The highest number.
        highest: u32,
    },
    /// A tensor is missing.
    #[error("layer {layer}: {name} is missing: {why}")]
    Missing {
        /// The layer.
        layer: u32,
        /// The tensor that should be there.
        name: String,
        /// How that is known.
        why: String,
    },
    /// A MoE layer has no router.
    #[error("layer {layer}: {module} has experts but no router, such as {module}.gate.weight")]
    MissingRouter {
        /// The layer.
        layer: u32,
        /// The module that holds the experts.
        module: String,
    },
    /// A router scores another number of experts than there are.
    #[error("layer {layer}: {name} scores {rows} experts, but there are {experts}")]
    RouterRows {
        /// The layer.
        layer: u32,
        /// The router's tensor.
        name: Arc<str>,
        /// What it scores.
        rows: u64,
        /// How many experts there are.
        experts: u64,
    },
    /// Layers differ in their number of experts.
    #[error(
        "layer {layer}: {module} has {experts} experts, but layer {other_layer} has {other_experts}"
    )]
    ExpertCount {
        /// The layer.
        layer: u32,
        /// The module that holds the experts.
        module: String,
        /// Its experts.
        experts: usize,
        /// The first layer.
        other_layer: u32,
        /// The first layer's experts.
        other_experts: usize,
    },
    /// A shape does not fit the layout.
    #[error("layer {layer}: {name} {shape:?}: {expected}")]
    Shape {
        /// The layer.
        layer: u32,
        /// The tensor.
        name: Arc<str>,
        /// Its shape.
        shape: Vec<u64>,
        /// What would fit.
        expected: String,
    },
    /// A shape has two readings.
    #[error("layer {layer}: {name} {shape:?} can be read in two ways, and {key} does not decide")]
    Ambiguous {
        /// The layer.
        layer: u32,
        /// The tensor.
        name: Arc<str>,
        /// Its shape.
        shape: Vec<u64>,
        /// What was asked of `config.json`.
        key: String,
    },
    /// `config.json` says something that cannot be used.
    #[error("config.json: {key}: {message}")]
    Config {
        /// The key.
        key: String,
        /// What is wrong with its value.
        message: String,
    },
}
