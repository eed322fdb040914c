//! The binary as a process: exit codes, signals, the socket's file, the log.

#[expect(dead_code, reason = "the edge's tests use the rest of the client")]
#[path = "edge/raw.rs"]
mod raw;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::Instant;

use crate::raw::{GOAWAY, PATIENCE, Raw};

/// A directory with a configuration and the socket of the daemon that it is for.
struct Place(tempfile::TempDir);

/// A daemon that listens.
struct Running {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    grpc: SocketAddr,
}

impl Place {
    fn new(drain_deadline: &str) -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary directory"));
        let root = place.path("model");
        std::fs::create_dir(&root).expect("created");
        let text = format!(
            "[listen]\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\nuds = {:?}\n\
             [[models]]\nname = \"m\"\nroot = {root:?}\n[levels.dram]\ncapacity = \"64MiB\"\n\
             [log]\nformat = \"json\"\n[drain]\ndeadline = {drain_deadline:?}\n",
            place.socket(),
        );
        std::fs::write(place.config(), text).expect("written");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn config(&self) -> PathBuf {
        self.path("tpad.toml")
    }

    fn socket(&self) -> PathBuf {
        self.path("run/tpad.sock")
    }

    /// Starts a daemon and waits until it listens.
    async fn start(&self) -> Running {
        let mut child = tpad()
            .arg("serve")
            .arg("--config")
            .arg(self.config())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("spawned");
        let stderr = child.stderr.take().expect("piped");
        let mut log = BufReader::new(stderr).lines();
        let line = find(&mut log, "tpad listens").await;
        let grpc = line["grpc"].as_str().and_then(|address| address.parse().ok());
        Running { child, log, grpc: grpc.expect("an address") }
    }
}

impl Running {
    fn signal(&self, signal: Signal) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        kill_process(id.expect("it runs"), signal).expect("signalled");
    }

    async fn exit(&mut self) -> ExitStatus {
        let exit = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        exit.expect("it ends in time").expect("waited")
    }

    /// A request that stays in progress: its message never comes.
    async fn open_request(&self) -> Raw {
        let mut raw = Raw::connect(self.grpc, 65_535).await;
        let block = raw::headers("/tpad.v1.ModelService/ListModels");
        raw.writer.frame(raw::HEADERS, 4, 1, &block).await;
        // Once this is answered the request has been seen.
        raw.writer.frame(raw::PING, 0, 0, &[7; 8]).await;
        raw.reader.find(|frame| frame.kind == raw::PING && frame.flags == raw::ACK).await;
        raw
    }
}

/// The log's next line with that message.
async fn find(log: &mut Lines<BufReader<ChildStderr>>, message: &str) -> Value {
    let read = async {
        loop {
            let line = log.next_line().await.expect("text").expect("the message before the end");
            let line: Value = serde_json::from_str(&line).expect("every line is JSON");
            if line["message"] == message {
                return line;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("in time")
}

fn tpad() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpad"));
    command.env_clear();
    command
}

async fn serve(arguments: &[&str]) -> Output {
    tpad().arg("serve").args(arguments).output().await.expect("ran")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[tokio::test]
async fn a_configuration_is_checked_whole_without_opening_anything() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/tpad.toml");
    let output = serve(&["--config", example, "--check-config"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("is valid"));

    let place = Place::new("1s");
    let wrong = "[listen]\nhttp = \"x\"\n[log]\nformat = \"x\"\n[levels.nvme]\npath = \"x\"\n";
    std::fs::write(place.config(), wrong).expect("written");
    let config = place.config();
    for more in [&[][..], &["--check-config"]] {
        let output = serve(&[&["--config", config.to_str().expect("UTF-8")], more].concat()).await;
        assert_eq!(output.status.code(), Some(2));
        for key in ["listen.http", "log.format", "models", "levels.nvme.path"] {
            assert!(text(&output.stderr).contains(key), "{key}: {}", text(&output.stderr));
        }
    }
    assert!(!place.socket().exists());
    let output = serve(&["--config", "/nowhere/tpad.toml"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/nowhere/tpad.toml"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn the_environment_says_how_to_reach_s3_and_the_command_line_wins_over_the_file() {
    let s3 = ["s3://bucket/model", "--check-config"];
    let run = async |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = tpad();
        command.arg("serve").args(arguments).envs(variables.iter().copied());
        command.output().await.expect("ran")
    };
    let plain = ("AWS_ENDPOINT_URL", "http://10.0.0.1:9000");
    let output = run(&[plain], &s3).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("models[0].origin.endpoint"), "{}", text(&output.stderr));
    let output = run(&[plain, ("AWS_ALLOW_HTTP", "true")], &s3).await;
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));

    let place = Place::new("1s");
    let config = place.config();
    let config = config.to_str().expect("UTF-8");
    let output = serve(&["--config", config, "--check-config", "--http", "0.0.0.0:x"]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("listen.http"), "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_capacity_above_what_there_is_is_refused_with_both_numbers() {
    let output = serve(&["/m", "--dram", "1000000TiB", "--check-config"]).await;
    assert_eq!(output.status.code(), Some(2));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("levels.dram.capacity: 1000000TiB is more than "), "{stderr}");
}

#[tokio::test]
async fn sigterm_drains_and_the_socket_goes() {
    let place = Place::new("30s");
    let mut daemon = place.start().await;
    let mut client = Raw::connect(daemon.grpc, 65_535).await;
    client.reader.find(|frame| frame.kind == raw::SETTINGS).await.expect("served");
    UnixStream::connect(place.socket()).await.expect("connects");
    daemon.signal(Signal::TERM);
    client.reader.find(|frame| frame.kind == GOAWAY).await.expect("told to go");
    drop(client);
    assert_eq!(daemon.exit().await.code(), Some(0));
    find(&mut daemon.log, "stopped").await;
    let left: Vec<_> = std::fs::read_dir(place.path("run")).expect("listed").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn the_process_ends_within_a_quarter_of_a_second_of_its_deadline() {
    let place = Place::new("400ms");
    let mut daemon = place.start().await;
    let client = daemon.open_request().await;
    let began = Instant::now();
    daemon.signal(Signal::INT);
    assert_eq!(daemon.exit().await.code(), Some(0));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(400), "the request had its time: {took:?}");
    assert!(took <= Duration::from_millis(650), "{took:?}");
    let end =
        find(&mut daemon.log, "stopped; connections still busy at drain.deadline were cut").await;
    assert_eq!((&end["level"], &end["connections"]), (&"WARN".into(), &1.into()));
    drop(client);
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let place = Place::new("1h");
        let mut daemon = place.start().await;
        let mut client = daemon.open_request().await;
        daemon.signal(Signal::TERM);
        client.reader.find(|frame| frame.kind == GOAWAY).await.expect("draining");
        daemon.signal(signal);
        assert_eq!(daemon.exit().await.code(), Some(code));
    }
}

#[tokio::test]
async fn a_killed_daemons_socket_is_taken_over_and_a_living_ones_is_not() {
    let place = Place::new("1s");
    let mut killed = place.start().await;
    killed.signal(Signal::KILL);
    killed.exit().await;
    assert!(place.socket().exists(), "nobody removed it");

    let daemon = place.start().await;
    UnixStream::connect(place.socket()).await.expect("the new daemon listens");
    let config = place.config();
    let output = serve(&["--config", config.to_str().expect("UTF-8")]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("listen.uds"), "{}", text(&output.stderr));
    UnixStream::connect(place.socket()).await.expect("it still listens");
    drop(daemon);
    assert!(Path::new(&place.socket()).exists());
}
