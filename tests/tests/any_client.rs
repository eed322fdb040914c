//! Clients that share nothing with tpad but the proto files, over TCP and over the
//! Unix socket: each reads every byte of every expert.

use std::collections::BTreeMap;
use std::process::Command;

use tonic::transport::{Channel, Endpoint};
use tpad_proto::v1;
use tpad_proto::v1::block_part::Part;
use tpad_proto::v1::expert_service_client::ExpertServiceClient;
use tpad_proto::v1::model_service_client::ModelServiceClient;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture, said};
use tpad_tests::process::Process;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};
use tpad_tests::tools;

/// A flat layout, and one whose experts are slices; what a client says of each.
const FIXTURES: [(&str, &str); 2] =
    [("qwen3_moe", "blocks 16 tensors 48"), ("gpt_oss", "blocks 16 tensors 64")];

async fn serve(scene: &Scene) -> Process {
    let mut config = String::new();
    for (name, _) in FIXTURES {
        let directory = scene.directory();
        let checkpoint =
            Checkpoint::import(&fixture(name), Store::Directory, directory, None).await;
        config += &checkpoint.section();
    }
    Process::serve(scene.directory(), &config).await
}

/// Both addresses, as gRPC's own libraries write them.
fn addresses(daemon: &Process) -> [String; 2] {
    [daemon.grpc().to_string(), daemon.address()]
}

/// Runs a script for each address and model, and holds what it says to the fixtures.
fn run(script: impl Fn() -> Command) {
    play(async move |scene| {
        let daemon = serve(scene).await;
        for address in addresses(&daemon) {
            for (name, expected) in FIXTURES {
                let mut script = script();
                script.arg(tools::workspace().join("proto")).args([&address, name]);
                script.arg(fixture(name));
                let run = tokio::task::spawn_blocking(move || script.output());
                let output = run.await.expect("it is joined").expect("it runs");
                assert!(output.status.success(), "{address}: {}", said(&output));
                let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                assert_eq!(line, expected, "{name} over {address}");
            }
        }
        let (status, log) = daemon.terminate();
        assert!(status.success(), "{status}\n{log}");
    });
}

#[test]
fn grpcio_reads_every_expert_exactly_over_both_sockets() {
    run(|| {
        let mut script = Command::new(tools::tool("python"));
        script.env("PYTHONDONTWRITEBYTECODE", "1");
        script.arg(tools::workspace().join("tests/python/fetch_experts.py"));
        script
    });
}

#[test]
fn grpc_js_reads_every_expert_exactly_over_both_sockets() {
    run(|| tools::node("fetch_experts.js"));
}

#[test]
fn tonics_generated_client_reads_every_expert_exactly_over_both_sockets() {
    play(async |scene| {
        let daemon = serve(scene).await;
        for address in [format!("http://{}", daemon.grpc()), daemon.address()] {
            let endpoint = Endpoint::from_shared(address).expect("a URL tonic knows");
            let channel = endpoint.connect().await.expect("it answers");
            for (name, expected) in FIXTURES {
                assert_eq!(compare(&channel, name).await, expected);
            }
        }
        let (status, log) = daemon.terminate();
        assert!(status.success(), "{status}\n{log}");
    });
}

/// Fetches all experts of the model and compares them; says how many.
async fn compare(channel: &Channel, model: &str) -> String {
    let request = v1::DescribeModelRequest { model: model.to_owned() };
    let described = ModelServiceClient::new(channel.clone()).describe_model(request).await;
    let tiers = described.expect("it is served").into_inner().tiers;
    let request = v1::FetchExpertsRequest {
        model: model.to_owned(),
        tiers: tiers.into_iter().map(|tier| tier.id).collect(),
        ..v1::FetchExpertsRequest::default()
    };
    let answer = ExpertServiceClient::new(channel.clone()).fetch_experts(request).await;
    let mut messages = answer.expect("it is served").into_inner();
    let mut images: Vec<(v1::Block, Vec<u8>)> = Vec::new();
    while let Some(message) = messages.message().await.expect("all of it") {
        match message.part.and_then(|part| part.part) {
            Some(Part::Block(block)) => images.push((block, Vec::new())),
            Some(Part::Payload(payload)) => {
                images.last_mut().expect("a block is opened first").1.extend(payload);
            }
            Some(Part::Start(_)) | None => {}
        }
    }
    let reference = Reference::read(&fixture(model));
    let mut compared = BTreeMap::new();
    for (block, image) in images {
        assert_eq!(image.len() as u64, block.image_bytes);
        let Some(v1::block_key::Key::Expert(expert)) = block.key.and_then(|key| key.key) else {
            unreachable!("only experts were asked for")
        };
        let at = (expert.layer, block.source_expert.expect("an expert has a source"));
        let expected = &reference.experts[&at];
        assert_eq!(block.tensors.len(), expected.len());
        for tensor in &block.tensors {
            let expected = &expected[&tensor.name];
            let from = usize::try_from(tensor.offset).expect("it fits");
            let found = &image[from..from + usize::try_from(tensor.bytes).expect("it fits")];
            assert_eq!((&tensor.dtype, &tensor.shape), (&expected.dtype, &expected.shape));
            assert!(found == expected.bytes, "{} differs", tensor.name);
        }
        let before = compared.insert(at, block.tensors.len());
        assert!(before.is_none(), "{at:?} came twice");
    }
    assert_eq!(compared.len(), reference.experts.len());
    format!("blocks {} tensors {}", compared.len(), compared.values().sum::<usize>())
}
