//! The binary against a daemon: what scripts rely on.

#[path = "commands/daemon.rs"]
mod daemon;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use safetensors::{Dtype, SafeTensors};

use crate::daemon::{Daemon, IMAGE, STATUS};

fn tpactl(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary runs")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpactl"));
    command.args(arguments).env_remove("TPAD_ADDR").env_remove("XDG_RUNTIME_DIR");
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

fn fetch(address: &str, expert: &str, out: &Path) -> Output {
    let out = out.to_str().expect("text");
    tpactl(&[
        "--addr", address, "fetch", "--model", "m", "--tier", "t", "--group", "0", "--expert",
        expert, "--layer", "3", "--out", out, "--json",
    ])
}

#[test]
fn wrong_usage_is_json_too_where_json_is_asked_for() {
    for arguments in [
        &["--json", "nonsense"][..],
        &["fetch", "--model", "m", "--out", "f", "--json"],
        &["--addr", "ftp://x", "status", "--json"],
    ] {
        let output = tpactl(arguments);
        assert_eq!(code(&output), 2, "{arguments:?}");
        let error: serde_json::Value =
            serde_json::from_slice(&output.stderr).expect("JSON on standard error");
        assert_eq!(error["error"]["kind"], "usage");
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(!message.is_empty() && !message.starts_with("error"), "{message}");
        assert!(text(&output.stderr).trim_end().lines().count() == 1);
    }
    let output = tpactl(&["nonsense"]);
    assert_eq!(code(&output), 2);
    assert!(text(&output.stderr).contains("Usage"), "for people, clap's own words");
    assert_eq!(code(&tpactl(&["--json", "--help"])), 0);
}

#[test]
fn status_as_json_is_the_daemons_document() {
    let daemon = Daemon::start();
    let output = tpactl(&["--addr", &daemon.address, "status", "--json"]);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("{STATUS}\n"));
    let by_environment = command(&["status", "--json"]).env("TPAD_ADDR", &daemon.address).output();
    assert_eq!(by_environment.expect("the binary runs").stdout, output.stdout);
    let outline = tpactl(&["--addr", &daemon.address, "status", "--all"]);
    assert!(text(&outline.stdout).contains("uptime"), "{}", text(&outline.stdout));
}

#[test]
fn a_fetched_expert_is_a_shard_under_the_checkpoints_names() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("e.safetensors");
    let output = fetch(&daemon.address, "0", &out);
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    let file = std::fs::read(&out).expect("written");
    let shard = SafeTensors::deserialize(&file).expect("a shard");
    assert_eq!(shard.names(), ["layers.3.experts.up"]);
    let tensor = shard.tensor("layers.3.experts.up").expect("named");
    assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::U8, &[4, 64][..]));
    assert_eq!(tensor.data(), IMAGE);

    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["revision"], 4);
    assert_eq!(report["blocks"][0]["key"]["kind"], "expert");
    assert_eq!(report["blocks"][0]["key"]["layer"], 3);
    assert_eq!(report["blocks"][0]["source_expert"], 9);
    assert_eq!(report["blocks"][0]["medium"], "object_store");
}

#[test]
fn failures_have_exit_codes_and_leave_no_file() {
    let daemon = Daemon::start();
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("e.safetensors");
    for (expert, expected, kind) in [("1", 4, "not_found"), ("2", 5, "data_loss")] {
        let output = fetch(&daemon.address, expert, &out);
        let error = text(&output.stderr);
        assert_eq!(code(&output), expected, "{error}");
        let error: serde_json::Value = serde_json::from_str(error).expect("JSON");
        assert_eq!(error["error"]["kind"], kind);
        let message = error["error"]["message"].as_str().expect("text");
        assert!(message.contains(&format!("expert t/0/{expert}")), "{message}");
        assert!(output.stdout.is_empty());
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);

    let nowhere = fetch(&daemon.address, "0", &dir.path().join("missing/e.safetensors"));
    assert_eq!(code(&nowhere), 11, "{}", text(&nowhere.stderr));
    assert_eq!(code(&tpactl(&["fetch", "--model", "m", "--out", "f"])), 2);
    let socket = format!("unix://{}/none.sock", dir.path().display());
    let unreachable = tpactl(&["--addr", &socket, "status"]);
    assert_eq!(code(&unreachable), 3);
    assert!(text(&unreachable.stderr).contains("--addr"), "{}", text(&unreachable.stderr));
}

#[test]
fn a_hanging_daemon_ends_at_the_timeout() {
    let daemon = Daemon::start();
    let arguments = ["--addr", &daemon.address, "--timeout", "0.2", "models"];
    let output = tpactl(&arguments);
    assert_eq!(code(&output), 9, "{}", text(&output.stderr));
}

#[test]
fn an_interrupt_ends_a_command_and_says_so() {
    let daemon = Daemon::start();
    let child = command(&["--addr", &daemon.address, "models"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    daemon.wait_for_list();
    let id = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(id.expect("a process"), rustix::process::Signal::INT)
        .expect("running");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(code(&output), 130, "{}", text(&output.stderr));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let daemon = Daemon::start();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command(&["--addr", &daemon.address, "status", "--json"])
        .stdout(writer)
        .output()
        .expect("the binary runs");
    assert_eq!((code(&output), text(&output.stderr)), (0, ""));
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = tpactl(&["completions", shell]);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        assert!(text(&output.stdout).contains("manifest"), "{shell}");
    }
}
