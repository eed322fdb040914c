//! How long an index of many blocks takes to load, and in how much memory.
//!
//! `cargo bench -p tpad-index` writes an index of one million and one of ten
//! million blocks to temporary files, then loads each in a process of its own
//! on one thread: header and every segment read, digests verified, every range
//! checked, parameters summed. It prints seconds and peak resident memory.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use bytes::Bytes;
use tpad_index::{MAX_HEADER_BYTES, decode_header, decode_segment, encode};
use tpad_manifest::{
    BlockId, BlockRecord, ByteRange, Dtype, GateUp, IndexBuilder, IndexRef, Orientation, Part,
    Projection, Role, Source, TensorRecord, TierId,
};

const LAYERS: u32 = 100;
const ROUNDS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    if let (Some(flag), Some(path)) = (arguments.next(), arguments.next())
        && flag == "--load"
    {
        return load(Path::new(&path));
    }
    let folder = std::env::temp_dir().join(format!("tpad-scale-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = [1_000_000, 10_000_000].into_iter().try_for_each(|blocks| {
        let path = folder.join(format!("{blocks}"));
        write(&path, blocks)?;
        for round in 1..=ROUNDS {
            let child = Command::new(std::env::current_exe()?).arg("--load").arg(&path).output()?;
            let text = String::from_utf8_lossy(&child.stdout);
            println!("{blocks} blocks, round {round}: {}", text.trim());
            if !child.status.success() {
                return Err(String::from_utf8_lossy(&child.stderr).into());
            }
        }
        Ok(())
    });
    std::fs::remove_dir_all(&folder)?;
    result
}

/// An index object, with its reference's text in front.
fn write(path: &Path, blocks: u32) -> Result<(), Box<dyn Error>> {
    let mut builder = IndexBuilder::for_tier(&TierId::Name("tier_10b".into()));
    let experts = blocks / LAYERS;
    for layer in 0..LAYERS {
        let records = (0..experts).map(|expert| record(layer, expert)).collect();
        builder.push_layer(layer, &[records], None)?;
    }
    let encoded = encode(&builder.finish());
    let reference = encoded.reference;
    let mut object = format!("{} {} ", reference.digest, reference.header_bytes).into_bytes();
    object.resize(128, b' ');
    object.extend_from_slice(&encoded.bytes);
    std::fs::write(path, object)?;
    Ok(())
}

/// Gate, up and down in the shards that a published checkpoint spreads over.
fn record(layer: u32, expert: u32) -> BlockRecord {
    let place = u64::from(expert) * 3;
    let tensors = [("gate", Projection::Gate), ("up", Projection::Up), ("down", Projection::Down)];
    let tensors = tensors.into_iter().zip(0..).map(|((name, projection), n)| TensorRecord {
        name: format!("model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight").into(),
        dtype: Dtype::from("BF16"),
        shape: vec![8, 4],
        role: Role { projection, part: Part::Weight },
        orientation: Orientation::OutIn,
        gate_up: GateUp::Unknown,
        values_per_element: 1,
        sliced: false,
        ranges: vec![ByteRange {
            object: format!("model-{layer:05}.safetensors").into(),
            offset: 8 + (place + n) * 64,
            bytes: 64,
        }],
    });
    BlockRecord {
        id: BlockId::of(&[layer.to_le_bytes(), expert.to_le_bytes()].concat()),
        tensors: tensors.collect(),
        source: Some(Source { expert, column: expert }),
    }
}

fn load(path: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let mut file = std::fs::File::open(path)?;
    let mut text = [0u8; 128];
    file.read_exact(&mut text)?;
    let text = std::str::from_utf8(&text)?;
    let mut words = text.split_ascii_whitespace();
    let (digest, header_bytes) = words.next().zip(words.next()).ok_or("no reference")?;
    let bytes = file.metadata()?.len() - 128;
    let header_bytes: u64 = header_bytes.parse()?;
    let reference = IndexRef { digest: digest.parse()?, header_bytes, bytes };
    let mut prefix = vec![0; usize::try_from(header_bytes.min(MAX_HEADER_BYTES))?];
    file.read_exact(&mut prefix)?;
    let header = decode_header(&prefix, &reference)?;
    let mut segments = Vec::new();
    for entry in &header.segments {
        let mut bytes = vec![0; usize::try_from(entry.bytes)?];
        file.read_exact(&mut bytes)?;
        segments.push(decode_segment(Bytes::from(bytes), entry, &header)?);
    }
    let blocks: u64 = segments.iter().map(tpad_manifest::Segment::block_count).sum();
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kibibytes: f64 = peak.trim().trim_end_matches("kB").trim().parse()?;
    println!(
        "{seconds:.2} s, peak {:.0} MiB, {blocks} blocks, {} parameters",
        kibibytes / 1024.0,
        header.parameters()
    );
    Ok(())
}
