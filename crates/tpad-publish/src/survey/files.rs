//! The small files that travel with a model: its configuration and tokenizer.

use std::collections::BTreeMap;

use tpad_manifest::FileRecord;
use tpad_store::{ObjectEntry, ObjectOrigin};

use crate::ImportError;

/// The largest file that is recorded; tokenizers have up to 35 MB.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// Their names, by what transformers and engines look for.
pub(super) const KNOWN: &[&str] = &[
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Whether a file at the root belongs to the tokenizer or the configuration.
fn travels(name: &str) -> bool {
    KNOWN.contains(&name) || (name.ends_with(".tiktoken") && !name.contains('/'))
}

/// Records the files that are there.
pub(super) async fn record(
    root: &ObjectOrigin,
    entries: &BTreeMap<String, ObjectEntry>,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<String, FileRecord>, ImportError> {
    let mut files = BTreeMap::new();
    for (name, entry) in entries.iter().filter(|(name, _)| travels(name)) {
        if entry.bytes > MAX_BYTES {
            notes.push(format!(
                "{name} has {} bytes, more than the {MAX_BYTES} that are served: it was left out",
                entry.bytes
            ));
            continue;
        }
        let bytes = root.get(name, MAX_BYTES).await?;
        files.insert(name.clone(), super::file_record(name, &bytes));
    }
    Ok(files)
}
