//! The client of every peer that has none better of its own: blocking sockets, one
//! thread and one connection for each request at a time, each into one buffer that
//! is used again.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use tpad_peers::closed_loop::{self, Load, Outcome};
use tpad_peers::exchange::{Exchange, Object, Protocol, name};
use tpad_peers::grpc::{Empty, Generated};
use tpad_peers::held::{Acquire, Hold};
use tpad_peers::s3::{Objects, Place};

/// Fetch values from a peer again and again, and print what that came to as JSON
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    peer: Peer,
}

#[derive(Debug, Subcommand)]
enum Peer {
    /// The raw loop
    Raw(Values),
    /// Files of an HTTP server
    Http {
        #[command(flatten)]
        values: Values,
        /// A file with bytes and path of each value, a line each [default: /BYTES-KEY]
        #[arg(long, conflicts_with = "bytes")]
        objects: Option<PathBuf>,
    },
    /// Redis
    Redis(Values),
    /// memcached
    Memcached(Values),
    /// The server that tonic generates
    Tonic(Values),
    /// The same server's empty unary call
    Empty {
        #[arg(long, required_unless_present = "uds")]
        addr: Option<SocketAddr>,
        /// The Unix socket that it listens at instead
        #[arg(long, value_name = "PATH", conflicts_with = "addr")]
        uds: Option<PathBuf>,
        #[command(flatten)]
        load: Load,
    },
    /// tpad's blocks in place, by a message for each
    Acquire(Held),
    /// tpad's blocks in place, by the daemon's directory
    Hold(Held),
    /// S3 with `object_store`
    S3 {
        #[command(flatten)]
        place: Place,
        /// A file with bytes and name of each object, a line each
        #[arg(long)]
        objects: PathBuf,
        #[command(flatten)]
        load: Load,
    },
    /// Store values from files named BYTES-KEY
    FillRedis(Fill),
    /// Store values from files named BYTES-KEY
    FillMemcached(Fill),
    /// Print the objects of a file with signed paths in place of their names
    Sign {
        #[command(flatten)]
        place: Place,
        /// A file with bytes and name of each object, a line each
        #[arg(long)]
        objects: PathBuf,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct Values {
    /// Where it listens
    #[arg(long)]
    addr: SocketAddr,
    /// Bytes of a value
    #[arg(long, default_value_t = 0)]
    bytes: usize,
    #[command(flatten)]
    load: Load,
}

#[derive(Debug, clap::Args)]
struct Held {
    /// The daemon's handoff socket
    #[arg(long)]
    socket: PathBuf,
    /// Whose experts
    #[arg(long)]
    model: String,
    /// Bytes of one
    #[arg(long)]
    bytes: usize,
    #[command(flatten)]
    load: Load,
}

#[derive(Debug, clap::Args)]
struct Fill {
    /// Where it listens
    #[arg(long)]
    addr: SocketAddr,
    /// Their directory
    #[arg(long)]
    from: PathBuf,
}

fn main() -> Result<()> {
    // object_store speaks plain HTTP here and still wants to know.
    let _already = rustls::crypto::ring::default_provider().install_default();
    match Arguments::parse().peer {
        Peer::Raw(values) => print(&values.exchange(Protocol::Raw)?),
        Peer::Redis(values) => print(&values.exchange(Protocol::Redis)?),
        Peer::Memcached(values) => print(&values.exchange(Protocol::Memcached)?),
        Peer::Http { mut values, objects: listed } => {
            let default = |key| {
                let name = format!("/{}", name(values.bytes, key));
                Object { bytes: values.bytes, name }
            };
            let paths = match listed {
                Some(file) => objects(&file)?,
                None => (0..values.load.keys).map(default).collect(),
            };
            values.bytes = paths.iter().map(|path| path.bytes).max().unwrap_or(0);
            print(&values.exchange(Protocol::Http { paths })?)
        }
        Peer::Tonic(Values { addr, bytes, load }) => {
            let url = format!("http://{addr}");
            print(&closed_loop::run(&load, || Generated::connect(&url, bytes))?)
        }
        Peer::Empty { addr, uds, load } => {
            let tcp = addr.map(|addr| format!("http://{addr}"));
            let unix = uds.map(|path| format!("unix://{}", path.display()));
            let url = tcp.or(unix).context("nowhere to connect to")?;
            print(&closed_loop::run(&load, || Empty::connect(&url))?)
        }
        Peer::Acquire(Held { socket, model, bytes, load }) => {
            let connect = || Acquire::connect(&socket, &model, bytes);
            print(&closed_loop::run(&load, connect)?)
        }
        Peer::Hold(Held { socket, model, bytes, load }) => {
            let connect = || Hold::connect(&socket, &model, bytes, load.keys);
            print(&closed_loop::run(&load, connect)?)
        }
        Peer::S3 { place, objects: listed, load } => {
            let listed = objects(&listed)?;
            print(&closed_loop::run(&load, || Objects::connect(&place, listed.clone()))?)
        }
        Peer::FillRedis(fill) => fill.run(&Protocol::Redis),
        Peer::FillMemcached(fill) => fill.run(&Protocol::Memcached),
        Peer::Sign { place, objects: listed } => {
            let mut out = std::io::stdout().lock();
            for Object { bytes, name } in place.signed(&objects(&listed)?)? {
                writeln!(out, "{bytes} {name}")?;
            }
            Ok(())
        }
    }
}

impl Values {
    fn exchange(&self, protocol: Protocol) -> Result<Outcome> {
        let connect = || Exchange::connect(protocol.clone(), self.addr, self.bytes);
        closed_loop::run(&self.load, connect)
    }
}

impl Fill {
    fn run(&self, protocol: &Protocol) -> Result<()> {
        for of_size in tpad_peers::values(&self.from)? {
            for (key, value) in of_size.iter().enumerate() {
                // Its buffer is for values, of which none comes here.
                Exchange::connect(protocol.clone(), self.addr, 0)?.store(key, value)?;
            }
        }
        Ok(())
    }
}

fn objects(file: &PathBuf) -> Result<Vec<Object>> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let object = |line: &str| {
        let (bytes, name) = line.split_once(' ')?;
        Some(Object { bytes: bytes.parse().ok()?, name: name.to_owned() })
    };
    text.lines().map(|line| object(line).with_context(|| line.to_owned())).collect()
}

fn print(outcome: &Outcome) -> Result<()> {
    let text = serde_json::to_string(outcome)?;
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
