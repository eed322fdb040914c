//! Routing: what `config.json` says of a router.
//!
//! Where it says nothing, the model type's own default holds, as its reference
//! code computes it.

use tpad_manifest::{GroupScoring, Scoring, ScoringFunction};

use super::LayoutError;
use super::config::{Config, refuse};

/// How the router sorts experts and how many a token uses.
pub(super) struct Groups {
    pub(super) groups: u32,
    pub(super) groups_per_token: u32,
    pub(super) experts_per_token: Option<u32>,
}

/// What the tensors tell of a router.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Signs {
    /// A correction bias is there under its own name.
    pub(super) correction_bias: bool,
    /// The layout is one whose routers take the softmax of the chosen logits
    /// alone: gpt-oss's or Granite's.
    pub(super) softmax_after: bool,
}

/// Model types and what their routers do when `config.json` does not say:
/// the function, and whether chosen weights are divided by their sum.
const DEFAULTS: &[(&str, ScoringFunction, bool)] = &[
    ("afmoe", ScoringFunction::Sigmoid, true),
    ("dbrx", ScoringFunction::Softmax, true),
    ("deepseek_v2", ScoringFunction::Softmax, false),
    ("deepseek_v3", ScoringFunction::Sigmoid, true),
    ("deepseek_v4", ScoringFunction::SqrtSoftplus, true),
    ("dots1", ScoringFunction::Sigmoid, false),
    ("ernie4_5_moe", ScoringFunction::Softmax, true),
    ("glm4_moe", ScoringFunction::Sigmoid, true),
    ("glm4v_moe", ScoringFunction::Sigmoid, true),
    ("gpt_oss", ScoringFunction::SoftmaxAfterTopK, false),
    ("granitemoe", ScoringFunction::SoftmaxAfterTopK, false),
    ("granitemoehybrid", ScoringFunction::SoftmaxAfterTopK, false),
    ("granitemoeshared", ScoringFunction::SoftmaxAfterTopK, false),
    ("grok-1", ScoringFunction::Softmax, false),
    ("hunyuan_v1_moe", ScoringFunction::Softmax, true),
    ("jamba", ScoringFunction::Softmax, false),
    ("kimi_k2", ScoringFunction::Sigmoid, true),
    ("lfm2_moe", ScoringFunction::Sigmoid, true),
    ("llama4", ScoringFunction::Sigmoid, false),
    ("longcat_flash", ScoringFunction::Softmax, false),
    ("minimax", ScoringFunction::Softmax, true),
    ("minimax_m1", ScoringFunction::Softmax, true),
    ("minimax_m2", ScoringFunction::Sigmoid, true),
    ("minimax_text_01", ScoringFunction::Softmax, true),
    ("mixtral", ScoringFunction::Softmax, true),
    ("nemotron_h", ScoringFunction::Sigmoid, true),
    ("nllb-moe", ScoringFunction::Softmax, true),
    ("olmoe", ScoringFunction::Softmax, false),
    ("phimoe", ScoringFunction::Softmax, false),
    ("qwen2_moe", ScoringFunction::Softmax, false),
    ("qwen3_5_moe", ScoringFunction::Softmax, true),
    ("qwen3_moe", ScoringFunction::Softmax, false),
    ("qwen3_next", ScoringFunction::Softmax, true),
    ("qwen3_vl_moe", ScoringFunction::Softmax, true),
    ("switch_transformers", ScoringFunction::Softmax, false),
];

const FUNCTION: &[&str] =
    &["scoring_func", "score_function", "score_func", "moe_router_activation_func"];

/// The function over the logits that `config.json` or the model type names.
pub(super) fn function(config: Config<'_>) -> Result<Option<ScoringFunction>, LayoutError> {
    let known = default(config).map(|(_, function, _)| *function);
    let Some((key, value)) = config.find(FUNCTION) else { return Ok(known) };
    match value.as_str() {
        Some("softmax") if known == Some(ScoringFunction::SoftmaxAfterTopK) => Ok(known),
        Some("softmax") => Ok(Some(ScoringFunction::Softmax)),
        // dots.llm1 names the selection method here.
        Some("sigmoid" | "noaux_tc") => Ok(Some(ScoringFunction::Sigmoid)),
        Some("sqrtsoftplus") => Ok(Some(ScoringFunction::SqrtSoftplus)),
        _ => Err(refuse(key, value, "softmax, sigmoid or sqrtsoftplus is expected")),
    }
}

/// How the router scores experts and, where it sorts them into `groups`, these.
pub(super) fn scoring(
    config: Config<'_>,
    signs: Signs,
    groups: &Groups,
    notes: &mut Vec<String>,
) -> Result<Scoring, LayoutError> {
    let function = match function(config)? {
        Some(function) => function,
        None if signs.softmax_after => ScoringFunction::SoftmaxAfterTopK,
        None if signs.correction_bias => ScoringFunction::Sigmoid,
        None => ScoringFunction::Softmax,
    };
    let told = config.switch(&["norm_topk_prob", "route_norm", "moe_renormalize"])?;
    let normalize = match (config.model_type(), told) {
        ("dbrx", _) => dbrx_norm(config, notes)?,
        (_, Some(told)) => told,
        (_, None) => default(config).is_some_and(|(.., normalize)| *normalize),
    };
    let scale = config.number(&[
        "routed_scaling_factor",
        "route_scale",
        "moe_router_topk_scaling_factor",
    ])?;
    let model = config.model_type();
    if default(config).is_none() && config.find(FUNCTION).is_none() {
        notes.push(format!(
            "config.json names no scoring function and its model type {model:?} is not known: \
             {} is recorded",
            match function {
                ScoringFunction::Softmax => "softmax",
                ScoringFunction::SoftmaxAfterTopK => "a softmax of the chosen logits",
                ScoringFunction::Sigmoid => "sigmoid with a correction bias",
                ScoringFunction::SqrtSoftplus => "the square root of softplus",
                ScoringFunction::Unknown => "no function",
            },
        ));
    }
    if model == "phimoe" {
        notes.push(
            "phimoe's sparse mixer scores each chosen expert by a softmax over the experts close \
             to it; a plain softmax is recorded"
                .into(),
        );
    }
    if model == "llama4" {
        notes.push("llama4 scales an expert's input by its weight, not its output".into());
    }
    Ok(Scoring {
        function,
        correction_bias: signs.correction_bias,
        normalize: normalize && function != ScoringFunction::SoftmaxAfterTopK,
        scale: scale.unwrap_or(1.0),
        groups: if groups.groups > 1 { group_scoring(config, signs) } else { Default::default() },
    })
}

/// How a router that knows groups scores them: by the two best experts where a
/// correction bias takes part in the selection (DeepSeek-V3 and what follows
/// it), by the best one otherwise (DeepSeek-V2).
fn group_scoring(config: Config<'_>, signs: Signs) -> GroupScoring {
    let method = config.find(&["topk_method"]).and_then(|(_, method)| method.as_str());
    match method {
        Some("noaux_tc") => GroupScoring::TopTwoSum,
        Some("group_limited_greedy") => GroupScoring::Max,
        _ if signs.correction_bias => GroupScoring::TopTwoSum,
        _ => GroupScoring::Max,
    }
}

fn default(config: Config<'_>) -> Option<&'static (&'static str, ScoringFunction, bool)> {
    DEFAULTS.iter().find(|(model, ..)| *model == config.model_type())
}

/// DBRX divides by a p-norm, or not at all where p is null.
fn dbrx_norm(config: Config<'_>, notes: &mut Vec<String>) -> Result<bool, LayoutError> {
    let p = config.number(&["moe_normalize_expert_weights"])?;
    if let Some(p) = p.filter(|p| (p - 1.0).abs() > f64::EPSILON) {
        notes.push(format!("weights are divided by their {p}-norm; their sum is recorded"));
    }
    Ok(p.is_some() || !config.has("moe_normalize_expert_weights"))
}

/// How many experts a token uses, in the words of the families.
const PER_TOKEN: [&str; 8] = [
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "num_selected_experts",
    "top_k_experts",
];

/// Into how many groups a router sorts its experts.
const GROUPS: [&str; 2] = ["n_group", "num_expert_group"];

/// How many of them a token uses.
const GROUPS_PER_TOKEN: [&str; 1] = ["topk_group"];

/// A model's config without what it says of its own experts' numbers, for
/// experts that are not its own.
pub(crate) fn without_counts(config: &serde_json::Value) -> serde_json::Value {
    let Some(fields) = config.as_object() else { return config.clone() };
    let is_count = |key: &str| {
        PER_TOKEN.iter().chain(&GROUPS).chain(&GROUPS_PER_TOKEN).any(|count| *count == key)
    };
    let kept = fields.iter().filter(|(key, _)| !is_count(key));
    // A model in a model has its own.
    kept.map(|(key, value)| (key.clone(), without_counts(value))).collect()
}

/// How the router sorts the layer's experts.
pub(super) fn groups(config: Config<'_>, experts: u32) -> Result<Groups, LayoutError> {
    let wrong = |key: &str, message: String| Err(LayoutError::Config { key: key.into(), message });
    let greedy = config.find(&["topk_method"]).is_some_and(|(_, method)| method == "greedy");
    let groups = match config.count(&GROUPS)? {
        Some(groups) if groups > 1 && !greedy => groups,
        _ => 1,
    };
    if !experts.is_multiple_of(groups) {
        return wrong("n_group", format!("{groups} groups cannot share {experts} experts evenly"));
    }
    let groups_per_token = match config.count(&GROUPS_PER_TOKEN)? {
        Some(chosen) if groups > 1 => chosen,
        _ => groups,
    };
    if groups_per_token == 0 || groups_per_token > groups {
        return wrong("topk_group", format!("{groups_per_token} of {groups} groups"));
    }
    let fixed = match config.model_type() {
        "switch_transformers" => Some(1),
        "nllb-moe" => Some(2),
        _ => None,
    };
    let experts_per_token = config.count(&PER_TOKEN)?.or(fixed);
    if let Some(chosen) = experts_per_token
        && (chosen == 0 || chosen > experts)
    {
        let key = config.find(&PER_TOKEN).map_or("num_experts_per_tok", |(key, _)| key);
        return wrong(key, format!("{chosen} of {experts} experts"));
    }
    Ok(Groups { groups, groups_per_token, experts_per_token })
}
