//! Checkpoints of any size, made of safetensors files that a test writes.
//!
//! A tensor's bytes follow from its name, so nothing that was written has to be
//! kept to know what a fetch must answer.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its name, which chooses its bytes.
    pub name: String,
    /// As safetensors spells it.
    pub dtype: &'static str,
    /// The shape.
    pub shape: Vec<u64>,
    /// Whether it is a hole in a sparse file: all zero.
    pub hole: bool,
}

impl Planned {
    /// A tensor with bytes of its own.
    #[must_use]
    pub fn new(name: impl Into<String>, dtype: &'static str, shape: &[u64]) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec(), hole: false }
    }

    /// A one-dimensional tensor of so many bytes that takes no room on disk.
    #[must_use]
    pub fn hole(name: impl Into<String>, bytes: u64) -> Self {
        Self { hole: true, ..Self::new(name, "U8", &[bytes]) }
    }

    /// Its size.
    #[must_use]
    pub fn len(&self) -> u64 {
        let element = match self.dtype {
            "U8" => 1,
            "BF16" => 2,
            other => unreachable!("tests write no {other}"),
        };
        self.shape.iter().product::<u64>() * element
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The bytes of the tensor of this name and size.
#[must_use]
pub fn content(name: &str, bytes: u64) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(bytes).expect("it fits in memory")];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut content);
    content
}

/// Writes one shard with the tensors in this order, back to back: their offsets
/// are as odd as their sizes.
///
/// # Panics
/// When it cannot be written.
pub fn write(path: &Path, tensors: &[Planned]) {
    let mut header = String::from("{");
    let mut end = 0;
    for (n, Planned { name, dtype, shape, .. }) in tensors.iter().enumerate() {
        let start = end;
        end += tensors[n].len();
        let comma = if n == 0 { "" } else { "," };
        let field =
            format!(r#""dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]"#);
        write!(header, r#"{comma}"{name}":{{{field}}}"#).expect("strings take all");
    }
    header.push('}');
    let file = File::create(path).expect("the shard can be made");
    let mut shard = BufWriter::new(&file);
    shard.write_all(&(header.len() as u64).to_le_bytes()).expect("room on disk");
    shard.write_all(header.as_bytes()).expect("room on disk");
    for tensor in tensors {
        if tensor.hole {
            let offset = i64::try_from(tensor.len()).expect("a file offset");
            shard.seek(SeekFrom::Current(offset)).expect("files can be sparse");
        } else {
            shard.write_all(&content(&tensor.name, tensor.len())).expect("room on disk");
        }
    }
    shard.flush().expect("room on disk");
    drop(shard);
    // A hole at the end is only there when the length says so.
    file.set_len(8 + header.len() as u64 + end).expect("files can be sparse");
}

/// Writes the `config.json` of a plain MoE model with so many experts.
///
/// # Panics
/// When it cannot be written.
pub fn write_config(directory: &Path, experts: u32) {
    let config = format!(
        r#"{{"model_type": "qwen3_moe", "num_experts": {experts}, "num_experts_per_tok": 2}}"#
    );
    std::fs::write(directory.join("config.json"), config).expect("room on disk");
}

/// What an expert of [`one_layer`] takes.
pub const ONE_LAYER_EXPERT_BYTES: u64 = 3 * 2 * 256 * 170;

/// Makes a model of one layer with so many experts, one after the other in one
/// shard.
///
/// # Panics
/// When the directory is there or cannot be written.
pub fn one_layer(directory: &Path, experts: u32) {
    std::fs::create_dir(directory).expect("a new directory");
    write_config(directory, experts);
    let gate = "model.layers.0.mlp.gate.weight".to_owned();
    let mut tensors = vec![Planned::new(gate, "BF16", &[u64::from(experts), 256])];
    for expert in 0..experts {
        for (part, shape) in [("gate", [170, 256]), ("up", [170, 256]), ("down", [256, 170])] {
            let name = format!("model.layers.0.mlp.experts.{expert}.{part}_proj.weight");
            tensors.push(Planned::new(name, "BF16", &shape));
        }
    }
    write(&directory.join("model.safetensors"), &tensors);
}

/// Makes a checkpoint that brings a tier: for each layer so many experts in each
/// group, named as `docs/tiers.md` says.
///
/// # Panics
/// When the directory is there or cannot be written.
pub fn tier(directory: &Path, id: &str, layers: &[u32], groups: &[u32], sizes: [u64; 2]) {
    std::fs::create_dir(directory).expect("a new directory");
    write(&directory.join("model.safetensors"), &tier_tensors(id, layers, groups, sizes));
}

/// The same with heads of its own for the tier and its groups, which readers have
/// to know.
///
/// # Panics
/// When the directory is there or cannot be written.
pub fn tier_with_heads(
    directory: &Path,
    id: &str,
    layers: &[u32],
    groups: &[u32],
    [hidden, inner]: [u64; 2],
) {
    let mut tensors = tier_tensors(id, layers, groups, [hidden, inner]);
    for layer in layers {
        let at = format!("tpad_tiers.{id}.layers.{layer}");
        for (head, rows) in [("tier_head", 1), ("group_heads", groups.len() as u64)] {
            tensors.push(Planned::new(format!("{at}.{head}.weight"), "BF16", &[rows, hidden]));
        }
    }
    std::fs::create_dir(directory).expect("a new directory");
    write(&directory.join("model.safetensors"), &tensors);
}

fn tier_tensors(
    id: &str,
    layers: &[u32],
    groups: &[u32],
    [hidden, inner]: [u64; 2],
) -> Vec<Planned> {
    let mut tensors = Vec::new();
    for layer in layers {
        let at = format!("tpad_tiers.{id}.layers.{layer}");
        let mut expert = 0u32;
        for (group, experts) in groups.iter().enumerate() {
            for _ in 0..*experts {
                let parts = [("gate", [inner, hidden]), ("up", [inner, hidden])];
                for (part, shape) in parts.into_iter().chain([("down", [hidden, inner])]) {
                    let name = format!("{at}.groups.{group}.experts.{expert}.{part}_proj.weight");
                    tensors.push(Planned::new(name, "BF16", &shape));
                }
                expert += 1;
            }
        }
        let shape = [u64::from(expert), hidden];
        tensors.push(Planned::new(format!("{at}.router.weight"), "BF16", &shape));
    }
    tensors
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn shards_are_what_the_safetensors_library_reads() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("model.safetensors");
        let tensors = [
            Planned::new("odd", "U8", &[3]),
            Planned::hole("hole", 5000),
            Planned::new("late", "BF16", &[2, 7]),
            Planned::hole("end", 10),
        ];
        write(&path, &tensors);
        let bytes = std::fs::read(&path).expect("the shard");
        let read = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        assert_eq!(read.len(), 4);
        for tensor in &tensors {
            let view = read.tensor(&tensor.name).expect("a tensor of that name");
            let expected = match tensor.hole {
                true => vec![0; usize::try_from(tensor.len()).expect("small")],
                false => content(&tensor.name, tensor.len()),
            };
            assert_eq!(view.data(), expected, "{}", tensor.name);
        }
    }
}
