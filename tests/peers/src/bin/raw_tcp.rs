//! The limit: a request of 16 bytes, key and length, is answered with as many bytes
//! from memory, and nothing else. Writes until a socket is full, then turns to the
//! next.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::Parser;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// Serve values from files named BYTES-KEY over plain TCP
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen
    #[arg(long)]
    listen: SocketAddr,
    /// The values' directory
    #[arg(long)]
    from: PathBuf,
    /// How it is sent, in place of the system's choice, such as `reno`
    #[arg(long)]
    congestion: Option<String>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let values = Arc::new(tpad_peers::values(&arguments.from)?);
    let socket = match arguments.listen {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    if let Some(congestion) = &arguments.congestion {
        // Before it listens: a socket that BBR once had stays paced.
        rustix::net::sockopt::set_tcp_congestion(&socket, congestion)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(arguments.listen)?;
    let listener = socket.listen(1024)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let values = Arc::clone(&values);
        tokio::spawn(async move {
            // A client that hangs up is done.
            let _done = serve(stream, &values).await;
        });
    }
}

async fn serve(mut stream: TcpStream, values: &[Vec<Vec<u8>>]) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; 16];
    loop {
        stream.read_exact(&mut request).await?;
        let (key, bytes) = request.split_at(8);
        let key = usize::try_from(u64::from_le_bytes(key.try_into()?))?;
        let bytes = usize::try_from(u64::from_le_bytes(bytes.try_into()?))?;
        let of_size = values.iter().find(|of| of.first().is_some_and(|v| v.len() == bytes));
        let value = of_size.and_then(|of| of.get(key)).context("no such value")?;
        stream.write_all(value).await?;
    }
}
