//! Questions to `config.json`.
//!
//! Composite models keep the language model's settings in a nested object,
//! which is asked first.

use serde_json::Value;

use super::LayoutError;

/// Objects that hold the language model's settings, the innermost first.
const NESTED: &[&[&str]] = &[
    &["thinker_config", "text_config"],
    &["text_config"],
    &["language_config"],
    &["llm_config"],
    &["ffn_config"],
    &[],
];

/// A checkpoint's `config.json`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Config<'a>(&'a Value);

impl<'a> Config<'a> {
    pub(super) fn new(root: &'a Value) -> Self {
        Self(root)
    }

    /// The first of these keys that has a value, and the value.
    pub(super) fn find<'k>(self, keys: &[&'k str]) -> Option<(&'k str, &'a Value)> {
        let mut found = self.objects().flat_map(|object| {
            keys.iter().filter_map(move |key| object.get(key).map(|value| (*key, value)))
        });
        found.find(|(_, value)| !value.is_null())
    }

    /// Whether the key is there, with or without a value.
    pub(super) fn has(self, key: &str) -> bool {
        self.objects().any(|object| object.get(key).is_some())
    }

    /// The objects that may hold a setting, the likeliest first.
    fn objects(self) -> impl Iterator<Item = &'a Value> {
        let find = move |path: &&[&str]| {
            path.iter().try_fold(self.0, |value, key| value.get(key)).filter(|v| v.is_object())
        };
        NESTED.iter().filter_map(find)
    }

    /// A whole number. A list counts when all its entries are equal.
    pub(super) fn count(self, keys: &[&str]) -> Result<Option<u32>, LayoutError> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        let mut number = value.as_u64();
        if let Some([first, rest @ ..]) = value.as_array().map(Vec::as_slice)
            && rest.iter().all(|other| other == first)
        {
            number = first.as_u64();
        }
        let count = number.and_then(|number| u32::try_from(number).ok());
        count.map(Some).ok_or_else(|| refuse(key, value, "a whole number is expected"))
    }

    /// A finite number.
    pub(super) fn number(self, keys: &[&str]) -> Result<Option<f64>, LayoutError> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        let number = value.as_f64().filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| refuse(key, value, "a number is expected"))
    }

    /// A switch.
    pub(super) fn switch(self, keys: &[&str]) -> Result<Option<bool>, LayoutError> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| refuse(key, value, "true or false is expected"))
    }

    /// The language model's type, such as `deepseek_v3`; empty when unknown.
    pub(super) fn model_type(self) -> &'a str {
        let text = self.find(&["model_type"]).and_then(|(_, value)| value.as_str()).unwrap_or("");
        text.strip_suffix("_text").unwrap_or(text)
    }

    /// The model's hidden size.
    pub(super) fn hidden_size(self) -> Result<Option<u64>, LayoutError> {
        Ok(self.count(&["hidden_size", "d_model", "n_embd"])?.map(u64::from))
    }

    /// The routed experts of a layer.
    pub(super) fn experts(self) -> Result<Option<u64>, LayoutError> {
        let keys = ["moe_num_experts", "num_local_experts", "num_experts", "n_routed_experts"];
        Ok(self.count(&keys)?.map(u64::from))
    }

    /// Bits of a packed weight, when every group of the quantization's settings
    /// agrees.
    pub(super) fn packed_bits(self) -> Option<u32> {
        let (_, settings) = self.find(&["quantization_config", "compression_config"])?;
        let groups = settings.get("config_groups")?.as_object()?;
        let mut bits = groups
            .values()
            .map(|group| u32::try_from(group.get("weights")?.get("num_bits")?.as_u64()?).ok());
        let first = bits.next()??;
        bits.all(|other| other == Some(first)).then_some(first)
    }
}

/// Refuses a value.
pub(super) fn refuse(key: &str, value: &Value, message: &str) -> LayoutError {
    let mut found: String = value.to_string().chars().take(80).collect();
    if found.len() < value.to_string().len() {
        found.push_str("...");
    }
    LayoutError::Config { key: key.into(), message: format!("{message}, not {found}") }
}
