//! The server that tonic generates, with its defaults.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Parser;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tpad_peers::grpc::{Nothing, Values};
use tpad_proto::v1::expert_service_server::ExpertServiceServer;
use tpad_proto::v1::model_service_server::ModelServiceServer;

/// Serve values from files named BYTES-KEY as tpad's proto files say, with generated code
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long, required_unless_present = "uds")]
    listen: Option<SocketAddr>,
    /// The Unix socket to listen at instead
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    uds: Option<PathBuf>,
    /// The values' directory
    #[arg(long)]
    from: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let values = tpad_peers::values(&arguments.from)?;
    let values = values.into_iter().map(|of| of.into_iter().map(Bytes::from).collect()).collect();
    let server = Server::builder()
        .add_service(ExpertServiceServer::new(Values(Arc::new(values))))
        .add_service(ModelServiceServer::new(Nothing));
    match arguments.uds {
        Some(path) => {
            let connections = UnixListenerStream::new(UnixListener::bind(path)?);
            server.serve_with_incoming(connections).await?;
        }
        None => server.serve(arguments.listen.context("nowhere to listen")?).await?,
    }
    Ok(())
}
