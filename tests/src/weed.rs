//! A real S3 server: SeaweedFS, one for all tests of a process.
//!
//! It checks signatures and answers ranges and conditional writes as S3 does.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::leash::Leash;
use crate::tools;

/// The access key that the server knows.
pub const ACCESS_KEY_ID: &str = "tpad-test";
/// Its secret.
pub const SECRET_ACCESS_KEY: &str = "tpad-test-secret";
/// The region that requests are signed for.
pub const REGION: &str = "us-east-1";

const BUCKET: &str = "models";

/// Two seconds are usual; a loaded machine of two cores takes longer.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running S3 server.
#[derive(Debug)]
pub struct Weed {
    address: SocketAddr,
    server: Leash,
}

impl Weed {
    /// The server of this process, started by the first who asks.
    ///
    /// # Panics
    /// When it is not installed or does not start.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Weed> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A server for one test alone, which may stop it. It ends with the process.
    ///
    /// # Panics
    /// As [`Self::shared`].
    #[must_use]
    pub fn alone() -> &'static Self {
        Box::leak(Box::new(Self::start()))
    }

    /// Stops it where it is: connections stay and nothing answers.
    ///
    /// # Panics
    /// When it is gone.
    pub fn freeze(&self) {
        self.server.signal("STOP");
    }

    /// Lets it go on.
    ///
    /// # Panics
    /// When it is gone.
    pub fn thaw(&self) {
        self.server.signal("CONT");
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, as `endpoint` options take it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A root that no other test uses: `s3://BUCKET/NAME-N`.
    #[must_use]
    pub fn fresh_root(&self, name: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("s3://{BUCKET}/{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    fn start() -> Self {
        let weed = tools::tool("weed");
        let ports = free_ports();
        let server = Leash::start(|directory| {
            let mut command = Command::new(weed);
            command.env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID);
            command.env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY);
            command.args(["-logtostderr=true", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
            command.args(["-admin.ui=false", "-webdav=false", "-master.telemetry=false"]);
            command.args(["-s3.port.iceberg=0", "-s3.port.lance=0"]);
            command.arg(format!("-bucket={BUCKET}"));
            command.arg(format!("-dir={}", directory.display()));
            for (option, port) in PORT_OPTIONS.iter().zip(ports) {
                command.arg(format!("-{option}={port}"));
            }
            command
        });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports[0]));
        let started = Instant::now();
        while !healthy(address) {
            assert!(started.elapsed() < START_DEADLINE, "weed did not start:\n{}", server.log());
            // Nothing to wait on: another process opens a port when it pleases.
            std::thread::park_timeout(Duration::from_millis(50));
        }
        Self { address, server }
    }
}

/// The first is the S3 port.
const PORT_OPTIONS: [&str; 10] = [
    "s3.port",
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

/// Ports that were free a moment ago, all different.
fn free_ports() -> [u16; PORT_OPTIONS.len()] {
    let listeners =
        PORT_OPTIONS.map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}

fn healthy(address: SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};

    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return false };
    let request = format!("GET /healthz HTTP/1.0\r\nHost: {address}\r\n\r\n");
    let mut answer = String::new();
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.split_whitespace().nth(1) == Some("200")
}
