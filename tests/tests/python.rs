//! A client that shares nothing with tpad but the proto files.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use tpad_client::{Client, ClientOptions, FetchExperts, Kind, Receiver};
use tpad_manifest::BlockId;
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

/// As `serve_blocks.py` makes it.
fn image(expert: usize) -> Vec<u8> {
    let size = [256, 1 << 20, (5 << 20) + 512][expert];
    (0..size).map(|at| u8::try_from((at % 256 * 7 + expert) % 256).expect("a byte")).collect()
}

#[test]
fn both_receivers_read_a_server_of_grpcio_exactly() {
    play(async |_| {
        let mut script = Command::new(tools::tool("python"));
        script.env("PYTHONDONTWRITEBYTECODE", "1");
        script.arg(tools::workspace().join("tests/python/serve_blocks.py"));
        script.arg(tools::workspace().join("proto"));
        let mut server =
            script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python");
        let mut input = server.stdin.take().expect("it is piped");
        for expert in 0..3 {
            writeln!(input, "{}", BlockId::of(&image(expert))).expect("it reads");
        }
        let mut port = String::new();
        let output = server.stdout.take().expect("it is piped");
        BufReader::new(output).read_line(&mut port).expect("it listens");
        let address = format!("http://127.0.0.1:{}", port.trim()).parse().expect("an address");
        let request = |model: &str| FetchExperts {
            model: model.to_owned(),
            tiers: vec!["t".to_owned()],
            ..FetchExperts::default()
        };
        for receiver in [Receiver::Bulk, Receiver::Ordinary] {
            let mut options = ClientOptions::default();
            options.receiver = receiver;
            let client = Client::connect_with(&address, options).await.expect("it answers");
            for _ in 0..3 {
                let mut stream = client.fetch_experts(request("m")).await.expect("a start");
                for expert in 0..3 {
                    let block = stream.next().await.expect("a block").expect("a block");
                    assert_eq!(block.image, image(expert), "{receiver:?}, expert {expert}");
                }
                assert!(stream.next().await.is_none());
            }
            let mut memory = vec![0; 8 << 20];
            let placed = client.fetch_into(request("m"), &mut memory).await.expect("all of it");
            for (expert, block) in placed.blocks.into_iter().enumerate() {
                assert_eq!(memory[block.image], image(expert));
            }
            let mut stream = client.fetch_experts(request("broken")).await.expect("a start");
            for _ in 0..2 {
                stream.next().await.expect("a block").expect("before the failure");
            }
            let error = stream.next().await.expect("an end").expect_err("a status");
            assert_eq!(error.kind(), Kind::Unavailable, "{error}");
            assert!(error.to_string().contains("as the test wants it"), "{error}");
        }
        drop(input);
        assert!(server.wait().expect("it ends").success());
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
