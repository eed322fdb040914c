//! The server that tonic generates, with its defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use clap::Parser;
use tonic::transport::Server;
use tpad_peers::grpc::{Nothing, Values};
use tpad_proto::v1::expert_service_server::ExpertServiceServer;
use tpad_proto::v1::model_service_server::ModelServiceServer;

/// Serve values from files named BYTES-KEY as tpad's proto files say, with generated code
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// The values' directory
    #[arg(long)]
    from: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let values = tpad_peers::values(&arguments.from)?;
    let values = values.into_iter().map(|of| of.into_iter().map(Bytes::from).collect()).collect();
    Server::builder()
        .add_service(ExpertServiceServer::new(Values(Arc::new(values))))
        .add_service(ModelServiceServer::new(Nothing))
        .serve(arguments.listen)
        .await?;
    Ok(())
}
