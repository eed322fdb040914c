//! Which of a directory's files are the checkpoint.
//!
//! Repositories hold their weights more than once: `consolidated` copies beside
//! the shards, the original format in a folder of its own. An index file
//! settles it; without one the names that `save_pretrained` uses do.

use std::collections::BTreeSet;

use crate::ImportError;

/// The model's configuration.
pub(super) const CONFIG: &str = "config.json";

/// What says which shard holds which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// A checkpoint in one file.
pub(super) const SINGLE: &str = "model.safetensors";

const SHARD: &str = ".safetensors";

/// The most missing shards that are named.
const NAMED: usize = 64;

/// Where the list of shards is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// In this index file.
    Index(String),
    /// Here.
    Shards(Vec<String>),
}

/// Chooses the checkpoint among `names`, paths relative to `root`.
pub(super) fn select(root: &str, names: &[&str]) -> Result<Selection, ImportError> {
    let top = || names.iter().copied().filter(|name| !name.contains('/'));
    let indexes: Vec<&str> =
        top().filter(|name| name.ends_with(".safetensors.index.json")).collect();
    if indexes.contains(&INDEX) {
        return Ok(Selection::Index(INDEX.to_owned()));
    }
    if let [index] = *indexes {
        return Ok(Selection::Index(index.to_owned()));
    }
    let shards: Vec<&str> = top().filter(|name| name.ends_with(SHARD)).collect();
    if shards.is_empty() {
        let below: BTreeSet<String> = names
            .iter()
            .filter(|name| name.ends_with(SHARD))
            .filter_map(|name| name.rsplit_once('/'))
            .map(|(directory, _)| directory.to_owned())
            .collect();
        return Err(ImportError::NoShards {
            root: root.to_owned(),
            below: below.into_iter().collect(),
        });
    }
    if shards.contains(&SINGLE) {
        return Ok(Selection::Shards(vec![SINGLE.to_owned()]));
    }
    let numbered: Vec<(&str, u32, u32)> = shards.iter().filter_map(|name| number(name)).collect();
    if let Some((_, _, of)) = numbered.first() {
        let held: BTreeSet<u32> = numbered
            .iter()
            .filter(|(_, number, others)| others == of && (1..=*of).contains(number))
            .map(|(_, number, _)| *number)
            .collect();
        let mut missing = (1..=*of).filter(|n| !held.contains(n));
        // The count is a file's name and may be anything: name a few, count the rest.
        let named: Vec<String> = missing
            .by_ref()
            .take(NAMED)
            .map(|n| format!("model-{n:05}-of-{of:05}{SHARD}"))
            .collect();
        if !named.is_empty() {
            let all = u64::from(*of).saturating_sub(held.len() as u64);
            let more = all.saturating_sub(named.len() as u64);
            return Err(ImportError::MissingShards { shards: named, more });
        }
        let chosen = numbered.iter().filter(|(_, _, others)| others == of);
        return Ok(Selection::Shards(chosen.map(|(name, _, _)| (*name).to_owned()).collect()));
    }
    let proper: Vec<&str> =
        shards.iter().copied().filter(|name| !name.starts_with("consolidated")).collect();
    let chosen = if proper.is_empty() { shards } else { proper };
    Ok(Selection::Shards(chosen.into_iter().map(str::to_owned).collect()))
}

/// The number and count in `model-00001-of-00005.safetensors`.
fn number(name: &str) -> Option<(&str, u32, u32)> {
    let (number, of) = name.strip_prefix("model-")?.strip_suffix(SHARD)?.split_once("-of-")?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !(digits(number) && digits(of)) {
        return None;
    }
    Some((name, number.parse().ok()?, of.parse().ok()?))
}

/// A sentence on the shards that are there and not part of the checkpoint.
pub(super) fn ignored(names: &[&str], chosen: &[String]) -> Option<String> {
    let ignored: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| name.ends_with(SHARD) && !chosen.iter().any(|path| path == name))
        .collect();
    let (first, rest) = ignored.split_first()?;
    Some(match rest.len() {
        0 => format!("{first} is not part of the checkpoint and was left out"),
        more => format!("{first} and {more} more are not part of the checkpoint and were left out"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(names: &[&str]) -> Selection {
        Selection::Shards(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn one_copy_of_the_weights_is_chosen() {
        let table: &[(&[&str], Selection)] = &[
            (&["model.safetensors", "adapter_model.safetensors"], shards(&["model.safetensors"])),
            (
                &[INDEX, "model-00001-of-00001.safetensors", "consolidated.safetensors"],
                Selection::Index(INDEX.to_owned()),
            ),
            (&[INDEX, "consolidated.safetensors.index.json"], Selection::Index(INDEX.to_owned())),
            (
                &["weights.safetensors.index.json", "weights-1.safetensors"],
                Selection::Index("weights.safetensors.index.json".to_owned()),
            ),
            (
                &[
                    "consolidated.safetensors",
                    "model-00001-of-00002.safetensors",
                    "model-00002-of-00002.safetensors",
                    "original/consolidated.00.safetensors",
                ],
                shards(&["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
            ),
            (&["a.safetensors", "consolidated.safetensors"], shards(&["a.safetensors"])),
            (&["consolidated.00.safetensors"], shards(&["consolidated.00.safetensors"])),
        ];
        for (names, expected) in table {
            assert_eq!(&select("root", names).expect("a checkpoint"), expected, "{names:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let names = ["model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"];
        let error = select("root", &names).expect_err("one is missing").to_string();
        assert!(error.contains("model-00002-of-00003.safetensors"), "{error}");
        let error = select("root", &["model-00001-of-4294967295.safetensors"]);
        let error = error.expect_err("nearly all are missing").to_string();
        assert!(error.contains("and 4294967286 more are missing"), "{error}");
        let names = ["original/consolidated.00.safetensors", "README.md"];
        let error = select("root", &names).expect_err("none at the top").to_string();
        assert!(error.contains("root") && error.contains("original"), "{error}");
    }

    #[test]
    fn what_is_left_out_is_told() {
        let names = ["a.safetensors", "b.safetensors", "original/c.safetensors", "config.json"];
        assert_eq!(ignored(&names[..1], &["a.safetensors".to_owned()]), None);
        let note = ignored(&names, &["a.safetensors".to_owned()]).expect("two");
        assert!(note.starts_with("b.safetensors and 1 more"), "{note}");
    }
}
