//! Generates the wire's code from `proto/tpad`, without `protoc`.

use std::path::{Path, PathBuf};

use prost::Message as _;

const FILES: [&str; 7] = [
    "handoff/v1/handoff.proto",
    "v1/admin.proto",
    "v1/block.proto",
    "v1/expert.proto",
    "v1/model.proto",
    "v1/routing.proto",
    "v1/scope.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let files = FILES.map(|name| root.join("tpad").join(name));
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
    }

    let descriptors = protox::compile(&files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    // Bytes fields alias the receive buffer instead of copying out of it.
    tonic_prost_build::configure()
        .bytes(".")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
