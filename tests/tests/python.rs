//! A client that shares nothing with tpad but the proto files.

use std::process::Command;

use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said};
use tpad_tests::daemon::Served;
use tpad_tests::scene::play;
use tpad_tests::tools;

#[test]
fn python_grpcio_reads_every_expert_exactly() {
    play(async |scene| {
        let mut config = String::new();
        let fixtures = [("qwen3_moe", "blocks 16 tensors 48"), ("gpt_oss", "blocks 16 tensors 64")];
        for (name, _) in fixtures {
            let directory = scene.directory();
            let checkpoint =
                Checkpoint::import(&fixture(name), Store::Directory, directory, None).await;
            config += &checkpoint.section();
        }
        let served = Served::start(scene, &config).await;
        let (_, address) = served
            .address()
            .split_once("://")
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .expect("a URL");
        for (name, expected) in fixtures {
            let mut script = Command::new(tools::tool("python"));
            script.env("PYTHONDONTWRITEBYTECODE", "1");
            script.arg(tools::workspace().join("tests/python/fetch_experts.py"));
            script.arg(tools::workspace().join("proto")).args([&address, name]);
            script.arg(fixture(name));
            let run = tokio::task::spawn_blocking(move || script.output());
            let output = run.await.expect("it is joined").expect("python runs");
            assert!(output.status.success(), "{}", said(&output));
            let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            assert_eq!(line, expected, "{name}");
        }
        served.stop().await;
    });
}

#[test]
fn the_routing_reference_in_the_documentation_gives_the_vectors() {
    let mut script = Command::new(tools::tool("python"));
    script.env("PYTHONDONTWRITEBYTECODE", "1");
    script.arg(tools::workspace().join("tests/python/routing.py"));
    script.arg(tools::workspace().join("docs/routing.md"));
    script.arg(tools::workspace().join("crates/tpad-client/tests/vectors"));
    let output = script.output().expect("python runs");
    assert!(output.status.success(), "{}", said(&output));
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    assert_eq!(line, "1280 tokens route as the vectors say");
}
