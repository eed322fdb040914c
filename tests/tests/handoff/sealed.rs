//! What workers get they can read and nothing else, and who may not gets nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use tpad_client::{AcquireOptions, Handoff};
use tpad_proto::handoff::v1::{self as wire, daemon_message};
use tpad_tests::checkpoint::said;
use tpad_tests::scene::play;
use tpad_tests::tools;
use tpad_tests::worker::Worker;

use super::stage::{Program, Stage, keys};

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

/// Says the frame in its second argument to the socket in its first, and prints what
/// comes back.
const SAY: &str = "
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(bytes.fromhex(sys.argv[2]))
print(ascii(s.recv(4096).decode('utf-8', 'replace')))
";

/// A hello: the frame's length, and a message whose first field is one whose first field,
/// the protocol, is 1.
const HELLO: &str = "040000000a020801";

#[test]
fn no_worker_can_change_a_byte_of_a_slab() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let keys = keys(&stage.daemon.address()).await;
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let held = handoff.acquire("mixtral", &keys, AcquireOptions::default()).await;
        let held: Vec<_> =
            held.expect("within bounds").blocks.into_iter().map(|it| it.expect("leased")).collect();
        let mut worker = Worker::welcome(&stage.socket()).await;
        assert!(worker.acquire(1, "mixtral", &keys).await);
        let Some(daemon_message::Message::Acquired(acquired)) = worker.hear().await else {
            unreachable!("no answer");
        };
        let slabs = worker.descriptors(acquired.slabs.len());
        assert!(!slabs.is_empty());
        let mut attempts = 0;
        for slab in slabs {
            let mut attack = Command::new(tools::tool("python"));
            attack.arg(tools::workspace().join("tests/python/attack_slab.py"));
            let output = attack.stdin(Stdio::from(slab)).output().expect("python runs");
            assert!(output.status.success(), "{}", said(&output));
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                assert!(line.ends_with(" EPERM") || line.ends_with(" EACCES"), "{line}");
                attempts += 1;
            }
        }
        assert_eq!(attempts, 16 * acquired.slabs.len());
        for block in &held {
            assert_eq!(blake3::hash(block).as_bytes(), block.id().as_bytes());
        }
    });
}

#[test]
fn a_worker_of_another_language_reads_the_same_bytes() {
    play(async |scene| {
        let stage = Stage::fixture(scene, "").await;
        let keys = keys(&stage.daemon.address()).await;
        let handoff = Handoff::connect(&stage.daemon.address()).await.expect("this user may");
        let first = handoff.acquire("mixtral", &keys[..1], AcquireOptions::default()).await;
        let first = first.expect("within bounds").blocks.remove(0).expect("it is leased");
        assert_eq!(
            first.key().to_string(),
            "expert base/0/0 at layer 0",
            "python asks for this one"
        );
        let mut worker = tokio::process::Command::new(tools::tool("python"));
        worker.env("PYTHONDONTWRITEBYTECODE", "1");
        worker.arg(tools::workspace().join("tests/python/hold_block.py"));
        worker.arg(tools::workspace().join("proto")).arg(stage.socket());
        worker.args(["mixtral", "base", "map"]);
        let (worker, line) = Program::start(worker).await;
        let mut sums =
            Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let sums = sums.as_mut().expect("coreutils");
        std::io::Write::write_all(&mut sums.stdin.take().expect("piped"), &first).expect("read");
        let mut expected = String::new();
        let mut output = sums.stdout.take().expect("piped");
        std::io::Read::read_to_string(&mut output, &mut expected).expect("text");
        sums.wait().expect("it ends");
        assert_eq!(Some(line.trim()), expected.split_whitespace().next());
        worker.finish().await;
    });
}

#[test]
fn a_user_that_is_not_named_is_refused_and_one_that_is_is_welcome() {
    if !rustix::process::geteuid().is_root() {
        // Only root can run a worker as somebody else; the rule has tests of its own.
        return;
    }
    play(async |scene| {
        let mut stage = Stage::fixture(scene, "uids = [64001]\nconnections = 1\n").await;
        reachable(scene.directory());
        let refused = say_as(NOBODY, &stage.socket());
        for word in ["65534", "handoff.uids", "handoff.gids"] {
            assert!(refused.contains(word), "{refused}");
        }
        assert_eq!(stage.leases().await["workers"], serde_json::json!([]));
        // It took no place, though it was told at length.
        drop(Worker::welcome(&stage.socket()).await);
        stage.set_handoff(&format!("uids = [{NOBODY}]\n"));
        stage.daemon.signal("KILL");
        stage.restart().await;
        let welcome = say_as(NOBODY, &stage.socket());
        assert!(!welcome.contains("handoff"), "{welcome}");
        stage.set_handoff("");
        stage.daemon.signal("KILL");
        stage.restart().await;
        let closed = say_as(NOBODY, &stage.socket());
        assert!(closed.contains("PermissionError"), "the file's mode: {closed}");
        let mut worker = Worker::connect(&stage.socket()).await;
        let hello = wire::Hello { protocol: 2, ..Default::default() };
        assert!(worker.say(wire::worker_message::Message::Hello(hello)).await);
        let failure = worker.refusal().await;
        assert!(failure.message.contains("version 1") && failure.message.contains("version 2"));
    });
}

/// Lets everybody look into the test's directory.
fn reachable(directory: &Path) {
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(directory, everybody).expect("it is this user's");
}

/// What the daemon answers to a hello of this user's.
fn say_as(user: u32, socket: &Path) -> String {
    let mut say = Command::new("/usr/bin/python3");
    say.args(["-c", SAY]).arg(socket).arg(HELLO).current_dir("/").uid(user).gid(user);
    said(&say.output().expect("python runs"))
}
