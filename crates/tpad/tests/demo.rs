//! `tpad demo` as its users run it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn demo(temporary: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_tpad"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", temporary)
        .env_remove("XDG_RUNTIME_DIR")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs")
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).expect("readable").count()
}

#[test]
fn once_reports_and_leaves_nothing() {
    let temporary = tempfile::tempdir().expect("a directory");
    let output = demo(temporary.path(), &["--once"]).wait_with_output().expect("it ends");
    let report = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{report}{errors}");
    assert_eq!(errors, "", "no warning, no error");
    for expected in [
        "256 experts, 12 routers and 35 dense tensors",
        "equal the shards",
        "tier_3m",
        "12+12+16",
        // Some dense tensors are equal, so one of them can come from DRAM already.
        "object_store (2",
        "warm      303 blocks",
        "from dram (303)",
        "gRPC      http://127.0.0.1:",
    ] {
        assert!(report.contains(expected), "{expected} is missing in\n{report}");
    }
    assert_eq!(entries(temporary.path()), 0);
}

#[test]
fn it_serves_until_interrupted_and_then_tidies_up() {
    let temporary = tempfile::tempdir().expect("a directory");
    let mut child = demo(temporary.path(), &[]);
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut address = String::new();
    for line in lines.by_ref() {
        let line = line.expect("text");
        if let Some((_, found)) = line.split_once("gRPC      http://") {
            address = found.to_owned();
        }
        if line.starts_with("Ctrl-C") {
            break;
        }
    }
    std::net::TcpStream::connect(&address).expect("it serves");
    let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(id, Signal::INT).expect("running");
    assert_eq!(lines.count(), 0, "nothing more is said");
    let mut errors = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut errors).expect("text");
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status}: {errors}");
    assert_eq!(entries(temporary.path()), 0);
}
