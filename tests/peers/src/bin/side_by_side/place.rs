//! Where everything is: programs, tools, memory and disk for the run's files.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::children;

/// What a step takes that only prepares: an import of a gigabyte, a synthetic
/// checkpoint.
const PREPARATION: Duration = Duration::from_secs(120);

/// The run's surroundings.
#[derive(Debug)]
pub(crate) struct Place {
    /// The checkout.
    pub(crate) root: PathBuf,
    /// Files in memory, and the logs; removed at the end.
    pub(crate) memory: PathBuf,
    /// Files on disk; removed at the end.
    pub(crate) disk: PathBuf,
    /// Processors of servers.
    pub(crate) server: String,
    /// Processors of clients.
    pub(crate) client: String,
    /// All of them.
    pub(crate) all: String,
    /// How many processors servers have.
    pub(crate) server_threads: usize,
    /// How many processors clients have.
    pub(crate) client_processors: usize,
    /// Whether the files go with this, or with the place that it was made of.
    owner: bool,
}

impl Place {
    pub(crate) fn new(root: PathBuf) -> Result<Self> {
        let processors = std::thread::available_parallelism()?.get();
        if processors < 2 {
            bail!("two processors at least: one for servers and one for clients");
        }
        let half = processors / 2;
        let id = std::process::id();
        let memory = PathBuf::from(format!("/dev/shm/tpad-peers-{id}"));
        let disk = root.join(format!("target/peers-{id}"));
        for directory in [&memory, &disk] {
            std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        }
        let range = |from: usize, to: usize| format!("{from}-{}", to - 1);
        Ok(Self {
            root,
            memory,
            disk,
            server: range(0, half),
            client: range(half, processors),
            all: range(0, processors),
            server_threads: half,
            client_processors: processors - half,
            owner: true,
        })
    }

    /// The same, with one processor for servers and the others for clients.
    pub(crate) fn with_one_server_processor(&self) -> Self {
        let processors = self.server_threads + self.client_processors;
        Self {
            root: self.root.clone(),
            memory: self.memory.clone(),
            disk: self.disk.clone(),
            server: "0".to_owned(),
            client: format!("1-{}", processors - 1),
            all: self.all.clone(),
            server_threads: 1,
            client_processors: processors - 1,
            owner: false,
        }
    }

    /// A program of this workspace, beside this one.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf> {
        let own = std::env::current_exe().context("this program's own path")?;
        let path = own.with_file_name(name);
        if !path.is_file() {
            bail!("{name} is not built: run `cargo xtask bench`");
        }
        Ok(path)
    }

    /// A program of the peers' Python environment.
    pub(crate) fn tool(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(".tools/peers/bin").join(name);
        if !path.is_file() {
            bail!("{name} is not installed: run `cargo xtask bench`");
        }
        Ok(path)
    }

    /// A script of the clients and servers in Python.
    pub(crate) fn script(&self, name: &str) -> PathBuf {
        self.root.join("tests/peers/python").join(name)
    }

    /// A program of the system, by its Debian package.
    pub(crate) fn system(&self, name: &str, package: &str) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
        let found = std::env::split_paths(&path).chain(sbin).map(|directory| directory.join(name));
        let mut found = found.filter(|path| path.is_file());
        found.next().with_context(|| format!("not installed: apt-get install {package}"))
    }

    /// Where a process's output goes.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.memory.join(format!("{}.log", name.replace(|c: char| !c.is_alphanumeric(), "-")))
    }

    /// Runs one of this workspace's programs to its end, on all processors.
    pub(crate) fn prepare(&self, command: &mut Command) -> Result<String> {
        children::output(command, &self.log("prepare"), PREPARATION)
    }

    /// What of an error may be kept: paths of this run say nothing elsewhere.
    pub(crate) fn told(&self, error: &anyhow::Error) -> String {
        let mut text = format!("{error:#}");
        for path in [&self.memory, &self.disk, &self.root] {
            text = text.replace(&path.display().to_string(), "...");
        }
        text
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.owner {
            return;
        }
        for directory in [&self.memory, &self.disk] {
            // What cannot be removed is said by whoever looks at the disk.
            let _left = std::fs::remove_dir_all(directory);
        }
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}

/// Whether somebody listens.
pub(crate) fn listens(address: SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_ok()
}

/// Makes the page cache forget files: all of it where that is allowed, else these.
pub(crate) fn forget(files: &[PathBuf]) -> Result<()> {
    rustix::fs::sync();
    if std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok() {
        return Ok(());
    }
    for file in files {
        let opened = std::fs::File::open(file).with_context(|| file.display().to_string())?;
        rustix::fs::fadvise(&opened, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// The files of a directory that end in `extension`, sorted.
pub(crate) fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = directory.read_dir().with_context(|| directory.display().to_string())?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
