//! Streams whose connections break, again and again: every byte once, and right.

use tpad_client::{Client, ClientOptions, FetchExperts, FetchedBlock, Receiver};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::cutter::Cutter;
use tpad_tests::daemon::Served;
use tpad_tests::scene::play;

fn everything(model: &str) -> FetchExperts {
    FetchExperts { model: model.to_owned(), tiers: vec!["base".to_owned()], ..Default::default() }
}

async fn fetched(client: &Client, model: &str) -> Vec<FetchedBlock> {
    let mut stream = client.fetch_experts(everything(model)).await.expect("a start");
    let mut blocks = Vec::new();
    while let Some(block) = stream.next().await {
        blocks.push(block.expect("it goes on"));
    }
    blocks.sort_by_key(|block| block.key.to_string());
    blocks
}

async fn through(cutter: &Cutter, receiver: Receiver, resumes: u32) -> Client {
    let mut options = ClientOptions::default();
    (options.receiver, options.resumes) = (receiver, resumes);
    let address = cutter.address().parse().expect("an address");
    Client::connect_with(&address, options).await.expect("it passes this on")
}

#[test]
fn a_stream_that_is_cut_a_hundred_times_brings_every_byte_once() {
    play(async |scene| {
        let model = "mixtral";
        let directory = scene.directory();
        let checkpoint =
            Checkpoint::import(&fixture(model), Store::Directory, directory, None).await;
        let served = Served::start(scene, &checkpoint.section()).await;
        let upstream = served.daemon().grpc_addr().expect("it listens");
        let expected = fetched(served.client(), model).await;
        let images: u64 = expected.iter().map(|block| block.image.len() as u64).sum();
        let largest = expected.iter().map(|block| block.image.len() as u64).max().expect("some");
        for receiver in [Receiver::Bulk, Receiver::Ordinary] {
            let (mut cuts, mut seed) = (0, 0);
            while cuts < 50 {
                seed += 1;
                // From one block to several: each connection brings something.
                let cutter = Cutter::start(upstream, seed, (largest + 4096, 4 * largest)).await;
                let client = through(&cutter, receiver, 4).await;
                let blocks = fetched(&client, model).await;
                assert_eq!(blocks.len(), expected.len());
                for (block, before) in blocks.iter().zip(&expected) {
                    assert_eq!((&block.key, &block.image), (&before.key, &before.image));
                }
                let mut memory =
                    vec![0; usize::try_from(images).expect("small") + 256 * blocks.len()];
                let placed = client.fetch_into(everything(model), &mut memory).await;
                for block in placed.expect("it goes on").blocks {
                    let before = expected.iter().find(|before| before.key == block.key);
                    assert_eq!(&memory[block.image], &before.expect("it was asked for").image[..]);
                }
                // Twice the images, what describes them, and for each cut less than a block of
                // what was under way: never a whole stream again.
                let descriptions = 2048 * (2 * blocks.len() as u64 + 2 * cutter.cuts() + 4);
                let most = 2 * images + descriptions + cutter.cuts() * largest;
                assert!(cutter.bytes() <= most, "{} bytes for {most}", cutter.bytes());
                cuts += cutter.cuts();
            }
        }
        served.stop().await;
    });
}

#[test]
fn a_stream_that_may_not_go_on_says_what_broke() {
    play(async |scene| {
        let directory = scene.directory();
        let checkpoint =
            Checkpoint::import(&fixture("mixtral"), Store::Directory, directory, None).await;
        let served = Served::start(scene, &checkpoint.section()).await;
        let upstream = served.daemon().grpc_addr().expect("it listens");
        let cutter = Cutter::start(upstream, 7, (4096, 8192)).await;
        for (resumes, receiver) in [(0, Receiver::Bulk), (0, Receiver::Ordinary)] {
            let client = through(&cutter, receiver, resumes).await;
            let mut stream = client.fetch_experts(everything("mixtral")).await.expect("a start");
            let error = loop {
                match stream.next().await.expect("it breaks before its end") {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, tpad_client::Error::Disconnected { .. }), "{error:?}");
        }
        served.stop().await;
    });
}
