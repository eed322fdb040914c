//! The publishing commands of the binary: what scripts rely on.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn command(arguments: &[&str], home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tpactl"));
    command.args(arguments).env_clear().env("HOME", home).stdin(Stdio::null());
    command
}

fn tpactl(arguments: &[&str], home: &Path) -> Output {
    command(arguments, home).output().expect("the binary runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("not killed")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("JSON on standard output")
}

fn error(output: &Output) -> Value {
    let error: Value = serde_json::from_slice(&output.stderr).expect("JSON on standard error");
    error["error"].clone()
}

/// A checkpoint of a few hundred kilobytes.
fn synth(directory: &Path, seed: &str) -> String {
    let out = directory.join("checkpoint").to_str().expect("text").to_owned();
    let output = tpactl(
        &[
            "synth",
            "--preset",
            "qwen3-30b-a3b",
            "--scale",
            "0.0001",
            "--layers",
            "2",
            "--experts",
            "8",
            "--vocab",
            "256",
            "--shard-size",
            "100KB",
            "--seed",
            seed,
            &out,
            "--json",
        ],
        directory,
    );
    assert_eq!(code(&output), 0, "{}", text(&output.stderr));
    assert!(json(&output)["shards"].as_u64().is_some_and(|shards| shards > 1));
    out
}

#[test]
fn a_model_has_a_name_that_a_daemon_can_serve_under() {
    let scratch = tempfile::tempdir().expect("scratch");
    let long = "x".repeat(257);
    for name in ["", "a b", "a\nb", "\u{1b}[2J", &long] {
        let output = tpactl(&["import", "/nowhere", "--model", name, "--json"], scratch.path());
        assert_eq!(code(&output), 2, "{name:?}: {}", text(&output.stderr));
        let message = error(&output)["message"].as_str().expect("a message").to_owned();
        assert!(message.contains("--model"), "{message}");
    }
}

#[test]
fn a_checkpoint_is_made_imported_shown_and_checked() {
    let scratch = tempfile::tempdir().expect("scratch");
    let home = scratch.path();
    let root = synth(home, "1");

    let dry = tpactl(&["import", &root, "--model", "m", "--dry-run", "--json"], home);
    assert_eq!((code(&dry), json(&dry)["outcome"].as_str()), (0, Some("dry_run")));
    assert!(!Path::new(&root).join("tpad").exists());

    let imported = tpactl(&["import", &root, "--model", "m", "--json"], home);
    assert_eq!(code(&imported), 0, "{}", text(&imported.stderr));
    let imported = json(&imported);
    assert_eq!(imported["outcome"], "written");
    assert_eq!(imported["revision"], 1);
    assert_eq!(imported["manifest"]["tiers"][0]["groups"][0]["experts"], 8);

    let again = tpactl(&["import", &root, "--model", "m", "--json"], home);
    assert_eq!(json(&again)["outcome"], "unchanged");

    let shown = tpactl(&["manifest", "show", &root], home);
    assert_eq!(json(&shown), imported["manifest"]);
    let listed = tpactl(&["manifest", "show", &root, "--index"], home);
    let lines: Vec<Value> = text(&listed.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len() as u64, imported["blocks"].as_u64().expect("a count"));
    let one = tpactl(&["manifest", "show", &root, "--tier", "base", "--layer", "1"], home);
    assert_eq!(text(&one.stdout).lines().count(), 9, "eight experts and a router");
    let none = tpactl(&["manifest", "show", &root, "--layer", "7", "--json"], home);
    assert_eq!((code(&none), error(&none)["kind"].as_str()), (4, Some("not_found")));

    let url = imported["url"].as_str().expect("a URL");
    for url in [url, &root] {
        let checked = tpactl(&["manifest", "check", url, "--json"], home);
        assert_eq!(code(&checked), 0, "{}", text(&checked.stderr));
        assert_eq!(json(&checked)["ok"], true);
        assert_eq!(json(&checked)["blocks"], imported["blocks"]);
    }
}

#[test]
fn a_check_that_finds_something_exits_with_one() {
    let scratch = tempfile::tempdir().expect("scratch");
    let root = synth(scratch.path(), "2");
    assert_eq!(code(&tpactl(&["import", &root, "--model", "m"], scratch.path())), 0);
    let shard = first_shard(&root);
    let mut bytes = fs::read(&shard).expect("readable");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&shard, bytes).expect("written");
    let checked = tpactl(&["manifest", "check", &root, "--json"], scratch.path());
    assert_eq!((code(&checked), error(&checked)["kind"].as_str()), (1, Some("check_failed")));
    let report = json(&checked);
    assert_eq!(
        (report["ok"].as_bool(), report["problems"].as_array().map(Vec::len)),
        (Some(false), Some(1))
    );
    let plain = tpactl(&["manifest", "check", &root], scratch.path());
    assert_eq!(code(&plain), 1);
    assert!(text(&plain.stdout).contains("problem: "), "{}", text(&plain.stdout));
}

fn first_shard(root: &str) -> std::path::PathBuf {
    let entries =
        fs::read_dir(root).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .expect("a shard")
}

#[test]
fn what_cannot_be_imported_has_its_exit_code() {
    let scratch = tempfile::tempdir().expect("scratch");
    let home = scratch.path();
    let root = synth(home, "3");
    let missing = home.join("missing").to_str().expect("text").to_owned();
    let plan = home.join("plan.toml");
    fs::write(&plan, "tiers = 3").expect("written");
    let plan = plan.to_str().expect("text");
    let table: &[(&[&str], i32, &str)] = &[
        (&["import", &missing, "--model", "m"], 4, "not_found"),
        (&["manifest", "check", &root], 4, "not_found"),
        (&["import", &root, "--model", "m", "--plan", plan], 6, "invalid_argument"),
        (&["import", &root, "--model", "m", "--plan", &missing], 11, "local"),
        (&["import", "ftp://host/x", "--model", "m"], 6, "invalid_argument"),
        (&["synth", &root], 7, "failed_precondition"),
        (
            &["synth", &missing, "--scale", "0.0001", "--experts", "2", "--experts-per-token", "3"],
            2,
            "usage",
        ),
    ];
    for (arguments, expected, kind) in table {
        let output = tpactl(&[*arguments, &["--json"]].concat(), home);
        assert_eq!(code(&output), *expected, "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(error(&output)["kind"], *kind, "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
    assert_eq!(code(&tpactl(&["synth", "--preset", "gpt-5", &missing], home)), 2);
    assert_eq!(code(&tpactl(&["import", &root], home)), 2, "a model needs a name");
    assert!(!Path::new(&missing).exists());
    assert!(!Path::new(&root).join("tpad").exists());
}

/// Ctrl-C while a store does not answer: the import cannot end by itself.
#[test]
fn an_interrupted_import_exits_with_130_and_leaves_nothing() {
    let scratch = tempfile::tempdir().expect("scratch");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let url = format!("http://{}/m", listener.local_addr().expect("an address"));
    let out = scratch.path().join("out");
    let out = out.to_str().expect("text");
    let arguments = ["import", &url, "--model", "m", "--out", out, "--json"];
    let child = command(&arguments, scratch.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // It is connected, and waits for an answer that does not come.
    let _connection = listener.accept().expect("a request");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("signalled");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((code(&output), error(&output)["kind"].as_str()), (130, Some("interrupted")));
    assert_eq!(fs::read_dir(scratch.path()).expect("scratch").count(), 0);
}
