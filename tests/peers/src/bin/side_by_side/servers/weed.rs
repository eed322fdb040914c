//! SeaweedFS with its S3 port: a master, a volume server and a filer in one process.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{START, Server};
use crate::children::{self, on};
use crate::place::{Place, free_address, listens};

/// What it knows of who asks.
const ACCESS_KEY_ID: &str = "tpad-peers";
const SECRET_ACCESS_KEY: &str = "tpad-peers-secret";
const REGION: &str = "us-east-1";
const BUCKET: &str = "models";

/// Ports that parts of it would open at their defaults, next to the S3 port.
const PORTS: [&str; 9] = [
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "admin.port",
    "admin.port.grpc",
];

/// A running S3 server.
#[derive(Debug)]
pub(crate) struct Weed {
    pub(crate) server: Server,
}

/// Starts it, with its files on disk. It wants ten ports, and one that was free may be taken
/// until it gets there.
pub(crate) fn weed(place: &Place, name: &str, processors: &str) -> Result<Weed> {
    let first = start(place, name, processors);
    first.or_else(|_| start(place, name, processors)).or_else(|_| start(place, name, processors))
}

fn start(place: &Place, name: &str, processors: &str) -> Result<Weed> {
    let address = free_address()?;
    let directory = place.disk.join(name);
    std::fs::create_dir_all(&directory)?;
    let mut command = on(processors, place.tool("weed")?);
    command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID);
    command.env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
    command.args(["-logtostderr=true", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
    command.args(["-admin.ui=false", "-webdav=false", "-master.telemetry=false"]);
    command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
    command.arg(format!("-bucket={BUCKET}")).arg(format!("-dir={}", directory.display()));
    command.arg(format!("-s3.port={}", address.port()));
    for option in PORTS {
        command.arg(format!("-{option}={}", free_address()?.port()));
    }
    let mut server = Server::start(place, name, &mut command, address)?;
    // The port is open before the parts have found each other.
    let child = server.processes.first_mut().context("it was started")?;
    child.wait_until(START, |_| listens(address) && healthy(address))?;
    Ok(Weed { server })
}

fn healthy(address: std::net::SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return false };
    let request = format!("GET /healthz HTTP/1.0\r\nHost: {address}\r\n\r\n");
    let mut answer = String::new();
    stream.set_read_timeout(Some(START)).is_ok()
        && stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.split_whitespace().nth(1) == Some("200")
}

impl Weed {
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.server.address)
    }

    pub(crate) fn root(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    pub(crate) fn bucket(&self) -> &'static str {
        BUCKET
    }

    /// The variables from which S3 clients take where and who.
    pub(crate) fn environment(&self, command: &mut Command) {
        command
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
            .env("AWS_REGION", REGION)
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_ENDPOINT_URL", self.endpoint())
            // s5cmd's name for it.
            .env("S3_ENDPOINT_URL", self.endpoint())
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("RUNAI_STREAMER_S3_ENDPOINT", self.endpoint())
            .env("RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING", "0");
    }

    /// `[models.origin]` of a daemon that reads from it.
    pub(crate) fn origin(&self) -> String {
        format!(
            "endpoint = \"{}\"\nregion = \"{REGION}\"\naccess_key_id = \"{ACCESS_KEY_ID}\"\n\
             secret_access_key = \"{SECRET_ACCESS_KEY}\"\nallow_http = true\n",
            self.endpoint()
        )
    }

    /// A command of `peer-load` that knows where the store is.
    pub(crate) fn load(&self, place: &Place, processors: &str, verb: &str) -> Result<Command> {
        let mut command = on(processors, place.program("peer-load")?);
        self.environment(&mut command);
        command.arg(verb).arg("--endpoint").arg(self.endpoint()).args(["--bucket", BUCKET]);
        Ok(command)
    }

    /// Stores files below a prefix.
    pub(crate) fn upload(&self, place: &Place, directory: &Path, prefix: &str) -> Result<()> {
        let mut command = on(&place.all, place.tool("s5cmd")?);
        self.environment(&mut command);
        command.arg("cp").arg(format!("{}/", directory.display()));
        command.arg(format!("{}/", self.root(prefix)));
        children::output(&mut command, &place.log("upload"), START).context("uploading")?;
        Ok(())
    }
}
