//! The real `tpad` program, as an operator starts it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tpad_client::Client;

use crate::cgroup::Meter;
use crate::http;
use crate::tools;

/// A debug build on a loaded machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running daemon that listens on a Unix socket and on loopback. Dropping it
/// kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    meter: Meter,
    socket: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Starts `tpad serve --config` with `config`, to which the listeners are
    /// added, and waits until it says that it is ready.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn serve(directory: &Path, config: &str) -> Self {
        Self::serve_with(&tools::program("tpad"), directory, config).await
    }

    /// The same, with another `tpad`.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn serve_with(program: &Path, directory: &Path, config: &str) -> Self {
        let socket = directory.join("tpad.sock");
        let listen = format!(
            "[listen]\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nuds = \"{}\"\n",
            socket.display()
        );
        let path = directory.join("tpad.toml");
        std::fs::write(&path, format!("{config}\n{listen}")).expect("the configuration is written");
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(path);
        let mut process = Self::start(&command, directory, socket);
        let ready = tokio::time::timeout(START_DEADLINE, process.wait_until_ready()).await;
        assert!(ready.is_ok(), "tpad is not ready:\n{}", process.log());
        process
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most memory that it used so far.
    ///
    /// # Panics
    /// When the kernel does not say.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.meter.peak_bytes(self.child.id()).expect("the kernel counts the daemon's memory")
    }

    /// How many sockets it has, listeners included.
    ///
    /// # Panics
    /// When the kernel does not say.
    #[must_use]
    pub fn sockets(&self) -> usize {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        let links = descriptors
            .expect("it runs")
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    /// Whether the peak is a cgroup's.
    #[must_use]
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where its HTTP pages are, as it logged when it started.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.logged("http=")
    }

    /// Where it speaks gRPC over TCP, as it logged when it started.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn grpc(&self) -> SocketAddr {
        self.logged("grpc=")
    }

    /// The sum of a metric over all label sets that hold all of `labels`.
    ///
    /// # Panics
    /// When there is no such metric.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (code, body) = http::get(self.http(), "/metrics").await;
        assert_eq!(code, 200, "{body}");
        http::metric(&body, name, labels)
    }

    fn logged(&self, field: &str) -> SocketAddr {
        let log = self.log();
        let address = log.split_whitespace().find_map(|word| word.strip_prefix(field));
        address.and_then(|address| address.parse().ok()).expect("it logs its addresses")
    }

    /// Sends it a signal, by its name for `kill`.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill runs");
        assert!(sent.success(), "the daemon was gone:\n{}", self.log());
    }

    /// Asks it to stop, as a supervisor does, and waits.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn terminate(mut self) -> (ExitStatus, String) {
        self.signal("TERM");
        let status = self.child.wait().expect("it can be waited for");
        (status, self.log())
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it cannot be waited for, or does not end.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().expect("it can be asked") {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let status = tokio::time::timeout(START_DEADLINE, ended).await;
        let log = self.log();
        (status.expect("a daemon that was asked to drain ends"), log)
    }

    fn start(command: &Command, directory: &Path, socket: PathBuf) -> Self {
        let log = directory.join("tpad.log");
        let output = std::fs::File::create(&log).expect("a log file");
        let meter = Meter::new();
        let child = meter
            .wrap(command)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a second handle"))
            .stderr(output)
            .spawn()
            .expect("tpad starts");
        Self { child, meter, socket, log }
    }

    /// Asks again and again: another process opens its socket when it pleases, and
    /// writes to its log a little later.
    async fn wait_until_ready(&mut self) {
        while !self.ready().await || !self.log().contains("tpad listens") {
            let ended = self.child.try_wait().expect("it can be asked");
            assert!(ended.is_none(), "tpad ended: {ended:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn ready(&self) -> bool {
        let Ok(client) = Client::connect(&self.address()).await else { return false };
        let status = client.status().await.unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        status["ready"] == true
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
