//! The index file that says which shard holds which tensor.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::{ImportError, ShardTensor};

/// Tensors and their shards, sorted by tensor.
#[derive(Debug)]
pub(super) struct WeightMap {
    file: String,
    tensors: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Document {
    weight_map: Pairs,
}

/// A JSON object whose keys may be there twice.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensors to shards")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

/// Reads an index file.
pub(super) fn parse(file: &str, document: &[u8]) -> Result<WeightMap, ImportError> {
    let refuse = |problem: String| ImportError::IndexFile { file: file.to_owned(), problem };
    let Document { weight_map: Pairs(mut tensors) } =
        serde_json::from_slice(document).map_err(|error| refuse(error.to_string()))?;
    if tensors.is_empty() {
        return Err(refuse("its weight_map is empty".to_owned()));
    }
    tensors.sort_unstable();
    match tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(refuse(format!("it names {:?} twice", pair[0].0))),
        None => Ok(WeightMap { file: file.to_owned(), tensors }),
    }
}

impl WeightMap {
    /// The shards that hold the checkpoint.
    pub(super) fn shards(&self) -> Vec<String> {
        let shards: BTreeSet<&String> = self.tensors.iter().map(|(_, shard)| shard).collect();
        shards.into_iter().cloned().collect()
    }

    /// Whether the shards hold exactly what the index says.
    pub(super) fn check(&self, tensors: &[ShardTensor]) -> Result<(), ImportError> {
        let listed: BTreeSet<(&str, &str)> =
            self.tensors.iter().map(|(name, shard)| (&**name, &**shard)).collect();
        let held: BTreeSet<(&str, &str)> =
            tensors.iter().map(|tensor| (&*tensor.name, &*tensor.object)).collect();
        let missing: Vec<String> = listed
            .difference(&held)
            .map(|(name, shard)| format!("{name} is not in {shard}"))
            .collect();
        let unlisted: Vec<String> = held
            .difference(&listed)
            .map(|(name, shard)| format!("{name} in {shard} is not listed"))
            .collect();
        let problems: Vec<String> = missing.into_iter().chain(unlisted).collect();
        if problems.is_empty() {
            return Ok(());
        }
        Err(ImportError::IndexMismatch { file: self.file.clone(), problems })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, object: &str) -> ShardTensor {
        ShardTensor {
            name: name.into(),
            dtype: "U8".into(),
            shape: vec![1],
            object: object.into(),
            offset: 0,
            bytes: 1,
        }
    }

    #[test]
    fn index_and_shards_are_compared_both_ways() {
        let document = br#"{"metadata":{},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
        let map = parse("i", document).expect("an index");
        assert_eq!(map.shards(), ["1.safetensors", "2.safetensors"]);
        let (a, b) = (tensor("a", "1.safetensors"), tensor("b", "2.safetensors"));
        assert!(map.check(&[b.clone(), a.clone()]).is_ok());
        let moved = map.check(&[a.clone(), tensor("b", "1.safetensors")]).expect_err("moved");
        let moved = moved.to_string();
        assert!(moved.contains("b is not in 2.safetensors"), "{moved}");
        assert!(moved.contains("b in 1.safetensors is not listed"), "{moved}");
        let extra = map.check(&[a, b, tensor("c", "2.safetensors")]).expect_err("extra");
        assert!(extra.to_string().contains("c in 2.safetensors is not listed"), "{extra}");
    }

    #[test]
    fn index_files_that_are_none_are_refused() {
        for document in [
            "",
            "[]",
            "{}",
            r#"{"weight_map":{}}"#,
            r#"{"weight_map":{"a":1}}"#,
            r#"{"weight_map":{"a":"x","a":"x"}}"#,
        ] {
            assert!(parse("i", document.as_bytes()).is_err(), "{document}");
        }
    }
}
