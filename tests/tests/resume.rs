//! Streams whose connections break, again and again: every byte once, and right.

use tpad_client::{Client, ClientOptions, FetchExperts, FetchedBlock, Receiver};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::cutter::Cutter;
use tpad_tests::daemon::Served;
use tpad_tests::scene::play;

/// What a cut costs beside payload: the next connection's settings, its reply's head and
/// start, the description of the block that goes on, and one that was cut itself. With the
/// bulk receiver it was 500 bytes on average.
const BEGINNING_BYTES: u64 = 1024;

/// The largest frames that the ordinary receiver takes.
const FRAME_BYTES: u64 = 1 << 20;

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

/// Fetches everything twice, into memory of the client's and of its own, and checks every byte.
async fn fetched_twice(client: &Client, model: &str, expected: &[FetchedBlock]) {
    let blocks = fetched(client, model).await;
    assert_eq!(blocks.len(), expected.len());
    for (block, before) in blocks.iter().zip(expected) {
        assert_eq!((&block.key, &block.image), (&before.key, &before.image));
    }
    let mut memory = vec![0; expected.iter().map(|block| block.image.len() + 256).sum()];
    let placed = client.fetch_into(everything(model), &mut memory).await;
    for block in placed.expect("it goes on").blocks {
        let before = expected.iter().find(|before| before.key == block.key);
        assert_eq!(&memory[block.image], &before.expect("it was asked for").image[..]);
    }
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
        let largest = expected.iter().map(|block| block.image.len() as u64).max().expect("some");
        assert!(largest < FRAME_BYTES, "a payload comes in one frame");
        for receiver in [Receiver::Bulk, Receiver::Ordinary] {
            // What the proxy passed on reaches the client: none of it is lost in sockets. The
            // bulk receiver puts each byte of a payload into its place as it comes. hyper hands
            // out whole frames, and a payload comes in one if it is smaller than the frames that
            // are taken. What came of that is lost: half of a block for each cut as a rule, here
            // a quarter of all that is asked for; with frames of 16 KiB it was 8 KiB a cut.
            let lost = match receiver {
                Receiver::Bulk => 0,
                Receiver::Ordinary => largest,
            };
            let uncut = Cutter::start(upstream, 0, (u64::MAX - 1, u64::MAX)).await;
            fetched_twice(&through(&uncut, receiver, 0).await, model, &expected).await;
            assert_eq!(uncut.cuts(), 0);
            let (mut cuts, mut seed) = (0, 0);
            while cuts < 50 {
                seed += 1;
                // From one block to several: each connection brings something.
                let cutter = Cutter::start(upstream, seed, (largest + 4096, 4 * largest)).await;
                fetched_twice(&through(&cutter, receiver, 4).await, model, &expected).await;
                let most = uncut.bytes() + cutter.cuts() * (BEGINNING_BYTES + lost);
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
