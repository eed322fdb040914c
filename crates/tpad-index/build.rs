//! Generates the index's messages without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    println!("cargo::rerun-if-changed={root}/tpad/v1/index.proto");
    let set = protox::compile(["tpad/v1/index.proto"], [root])?;
    prost_build::Config::new().bytes(["."]).compile_fds(set)?;
    Ok(())
}
