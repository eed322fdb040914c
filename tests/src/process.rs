//! The real `tpad` program, as an operator starts it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::cgroup::Meter;
use crate::tools;

/// A debug build on a loaded machine.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A running daemon that listens on a Unix socket. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    meter: Meter,
    socket: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Starts `tpad serve --config` with `config`, to which the listeners are
    /// added, and waits until its socket is there.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn serve(directory: &Path, config: &str) -> Self {
        let socket = directory.join("tpad.sock");
        let listen = format!(
            "[listen]\ngrpc = \"off\"\nhttp = \"127.0.0.1:0\"\nuds = \"{}\"\n",
            socket.display()
        );
        let path = directory.join("tpad.toml");
        std::fs::write(&path, format!("{config}\n{listen}")).expect("the configuration is written");
        let mut command = Command::new(tools::program("tpad"));
        command.arg("serve").arg("--config").arg(path);
        Self::start(&command, directory, socket)
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The most memory that it used so far.
    ///
    /// # Panics
    /// When the kernel does not say.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.meter.peak_bytes(self.child.id()).expect("the kernel counts the daemon's memory")
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

    /// Asks it to stop, as a supervisor does, and waits.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn terminate(mut self) -> (ExitStatus, String) {
        let pid = self.child.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(asked.success(), "the daemon was gone:\n{}", self.log());
        let status = self.child.wait().expect("it can be waited for");
        (status, self.log())
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
        let mut process = Self { child, meter, socket, log };
        let started = Instant::now();
        while !process.listens() {
            let ended = process.child.try_wait().expect("it can be asked");
            assert!(ended.is_none(), "tpad ended: {ended:?}\n{}", process.log());
            assert!(started.elapsed() < START_DEADLINE, "tpad is not up:\n{}", process.log());
            // Nothing to wait on: another process opens its socket when it pleases.
            std::thread::park_timeout(Duration::from_millis(20));
        }
        process
    }

    fn listens(&self) -> bool {
        std::os::unix::net::UnixStream::connect(&self.socket).is_ok()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
