//! A daemon with a model, and workers in processes of their own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tpad_client::Client;
use tpad_manifest::BlockKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said, tpactl};
use tpad_tests::process::Process;
use tpad_tests::scene::Scene;
use tpad_tests::worker::experts;

/// From the end of a worker until its leases are over.
pub(super) const SOON: Duration = Duration::from_secs(10);

/// A daemon in a process of its own, with one model.
pub(super) struct Stage {
    pub(super) daemon: Process,
    pub(super) model: String,
    directory: PathBuf,
    config: String,
}

/// What a worker says that it holds.
#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Held {
    pub(super) blocks: u64,
    pub(super) bytes: u64,
    pub(super) right: bool,
    pub(super) mapped: bool,
    pub(super) private: u64,
    pub(super) epoch: u64,
}

/// A process that is killed when it is dropped.
pub(super) struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Stage {
    /// With the mixtral fixture, and these lines of `[handoff]`.
    pub(super) async fn fixture(scene: &Scene, handoff: &str) -> Self {
        let (store, directory) = (Store::Directory, scene.directory());
        let checkpoint = Checkpoint::import(&fixture("mixtral"), store, directory, None).await;
        Self::of(scene, "mixtral", &checkpoint.section(), "64MiB", handoff).await
    }

    /// With the mixtral fixture and these others, and memory for a part of them.
    pub(super) async fn crowded(scene: &Scene, others: &[&str]) -> Self {
        Self::crowded_with(scene, others, "").await
    }

    /// With more sections of the configuration.
    pub(super) async fn crowded_with(scene: &Scene, others: &[&str], more: &str) -> Self {
        let mut section = String::new();
        for name in std::iter::once(&"mixtral").chain(others) {
            let (store, directory) = (Store::Directory, scene.directory());
            let checkpoint = Checkpoint::import(&fixture(name), store, directory, None).await;
            section += &checkpoint.section();
        }
        let handoff = format!("lease_bytes = \"768KiB\"\n{more}");
        Self::of(scene, "mixtral", &section, "1MiB", &handoff).await
    }

    /// With 16 experts of 128 KiB that are made up, and memory for half of them, of which
    /// leases may hold five.
    pub(super) async fn scarce(scene: &Scene) -> Self {
        let options = ["--hidden", "128", "--intermediate", "170"];
        Self::made(scene, &options, "1MiB", "lease_bytes = \"640KiB\"\n").await
    }

    /// With a model of two layers and 16 experts that is made up.
    pub(super) async fn synthetic(scene: &Scene, options: &[&str]) -> Self {
        Self::made(scene, options, "512MiB", "lease_bytes = \"300MiB\"\n").await
    }

    async fn made(scene: &Scene, options: &[&str], capacity: &str, handoff: &str) -> Self {
        let root = scene.directory().join("made");
        let shape =
            ["--preset", "mixtral-8x7b", "--layers", "2", "--experts", "8", "--vocab", "256"];
        let mut synth = tpactl();
        synth.arg("synth").arg(&root).args(shape).args(options);
        let made = synth.output().expect("tpactl runs");
        assert!(made.status.success(), "{}", said(&made));
        let imported = tpactl().arg("import").arg(&root).args(["--model", "made"]).output();
        let imported = imported.expect("tpactl runs");
        assert!(imported.status.success(), "{}", said(&imported));
        let section = format!("[[models]]\nname = \"made\"\nroot = {root:?}\n");
        Self::of(scene, "made", &section, capacity, handoff).await
    }

    async fn of(scene: &Scene, model: &str, section: &str, capacity: &str, handoff: &str) -> Self {
        let config = format!(
            "follow_interval = \"0s\"\n{section}[levels.dram]\ncapacity = \"{capacity}\"\n\
             [drain]\ndeadline = \"2s\"\n[handoff]\n{handoff}"
        );
        let directory = scene.directory().to_owned();
        let daemon = Process::serve(&directory, &config).await;
        Self { daemon, model: model.to_owned(), directory, config }
    }

    /// Its handoff socket.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.join("tpad-handoff.sock")
    }

    /// Has the next daemon have these lines of `[handoff]`.
    pub(super) fn set_handoff(&mut self, handoff: &str) {
        let before = self.config.split_once("[handoff]\n").expect("it has the section").0;
        self.config = format!("{before}[handoff]\n{handoff}");
    }

    /// The next daemon after this one has ended.
    pub(super) async fn restart(&mut self) {
        self.daemon = Process::serve(&self.directory, &self.config).await;
    }

    /// A worker that holds every expert.
    pub(super) async fn hold(&self, options: &[&str]) -> (Program, Held) {
        let mut worker = Command::new(env!("CARGO_BIN_EXE_hold_blocks"));
        worker.arg(self.daemon.address()).arg(&self.model).args(options);
        let (worker, line) = Program::start(worker).await;
        (
            worker,
            serde_json::from_str(&line).unwrap_or_else(|error| unreachable!("{error}: {line}")),
        )
    }

    /// A worker that compares what it reads with the checkpoint that was made up, and says
    /// so when it has found another daemon.
    pub(super) fn read_on(&self) -> Program {
        let mut worker = Command::new(env!("CARGO_BIN_EXE_read_on"));
        worker.arg(self.daemon.address()).arg(&self.model).arg(self.directory.join("made"));
        Program::spawn(worker)
    }

    /// What the status says of leases.
    pub(super) async fn leases(&self) -> Value {
        self.status().await["leases"].clone()
    }

    pub(super) async fn status(&self) -> Value {
        let client = Client::connect(&self.daemon.address()).await.expect("the daemon answers");
        let status = client.status().await.expect("the daemon answers");
        serde_json::from_str(&status).expect("JSON")
    }

    /// Waits until nobody holds anything.
    pub(super) async fn free(&self) {
        let began = Instant::now();
        loop {
            let leases = self.leases().await;
            if leases["bytes"] == 0 && leases["workers"] == serde_json::json!([]) {
                return;
            }
            assert!(began.elapsed() < SOON, "{leases:#}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many descriptors the daemon has by kind: `socket`, `anon_inode:[pidfd]`, `/memfd`
    /// and the like.
    pub(super) fn descriptors(&self) -> BTreeMap<String, usize> {
        let listed = std::fs::read_dir(format!("/proc/{}/fd", self.daemon.id()));
        let mut kinds = BTreeMap::new();
        for entry in listed.expect("it runs") {
            let link = std::fs::read_link(entry.expect("it runs").path()).unwrap_or_default();
            let link = link.to_string_lossy();
            let named = link.starts_with("socket:") || link.starts_with("/memfd:");
            let kind = if named { link.split(':').next().unwrap_or(&link) } else { &link };
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        kinds
    }
}

impl Program {
    fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, lines }
    }

    /// Starts it and waits for its first line.
    pub(super) async fn start(command: Command) -> (Self, String) {
        let mut program = Self::spawn(command);
        let line = program.line().await;
        (program, line)
    }

    /// What it says next. Dropped, nothing is lost of it.
    pub(super) async fn line(&mut self) -> String {
        let line = tokio::time::timeout(Duration::from_secs(120), self.lines.next_line()).await;
        let line = line.expect("it says something").expect("text");
        line.expect("it says something before it ends")
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Ends it with SIGKILL and waits for it.
    pub(super) async fn kill(mut self) {
        self.child.kill().await.expect("it runs");
    }

    /// Has its standard input end.
    pub(super) fn end(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Has its standard input end, and waits for it.
    pub(super) async fn finish(mut self) {
        self.end();
        let status = self.child.wait().await.expect("it ends");
        assert!(status.success(), "{status}");
    }
}

/// Every expert of the mixtral fixture.
pub(super) async fn keys(address: &str) -> Vec<BlockKey> {
    experts(address, "mixtral").await
}
