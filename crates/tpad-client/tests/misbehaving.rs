//! What the client makes of a daemon that breaks the rules: a typed error,
//! never a wrong byte, a hang or memory for a mere claim.

#[path = "misbehaving/daemon.rs"]
mod daemon;

use std::time::Duration;

use futures::FutureExt as _;
use tonic::transport::{Identity, ServerTlsConfig};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tpad_client::{
    Client, ClientOptions, Error, FetchDense, FetchExperts, FetchedBlock, Kind, Medium, Receiver,
    RetryPolicy,
};
use tpad_manifest::{BlockId, BlockKey, ExpertKey, TierId};
use tpad_proto::v1;

use crate::daemon::{Daemon, Script, block, payload, start};

fn key(expert: u32) -> ExpertKey {
    ExpertKey { tier: TierId::Name("t".into()), group: 0, expert }
}

fn asked(experts: &[u32]) -> FetchExperts {
    FetchExperts {
        model: "m".to_owned(),
        keys: experts.iter().copied().map(key).collect(),
        ..FetchExperts::default()
    }
}

fn image(seed: u8, bytes: usize) -> Vec<u8> {
    (0..=u8::MAX).cycle().map(|at| seed.wrapping_add(at)).take(bytes).collect()
}

/// Fetches expert 0 from a daemon that answers with `script`: through both receivers,
/// and into memory of our own, all with one outcome.
async fn fetched(script: Script) -> Result<Vec<FetchedBlock>, Error> {
    let daemon = Daemon::start(script).await;
    let address = daemon.address().parse().expect("an address");
    let mut options = ClientOptions::default();
    options.receiver = Receiver::Ordinary;
    let ordinary = Client::connect_with(&address, options).await?;
    let bulk = Client::connect(&daemon.address()).await?;
    let expected = outcome(&fetched_from(&ordinary).await);
    let mut memory = vec![0xee; 8 << 20];
    let placed = bulk.fetch_into(asked(&[0]), &mut memory).await;
    let placed = placed.map(|placed| {
        let images = placed.blocks.into_iter().map(|block| memory[block.image].to_vec());
        images.collect::<Vec<_>>()
    });
    assert_eq!(placed.map_err(|error| error.to_string()), expected);
    let fetched = fetched_from(&bulk).await;
    assert_eq!(outcome(&fetched), expected);
    fetched
}

/// A fetch's images, or its error as text.
fn outcome(fetched: &Result<Vec<FetchedBlock>, Error>) -> Result<Vec<Vec<u8>>, String> {
    match fetched {
        Ok(blocks) => Ok(blocks.iter().map(|block| block.image.to_vec()).collect()),
        Err(error) => Err(error.to_string()),
    }
}

async fn fetched_from(client: &Client) -> Result<Vec<FetchedBlock>, Error> {
    let mut stream = client.fetch_experts(asked(&[0])).await?;
    let mut blocks = Vec::new();
    while let Some(block) = stream.next().await {
        blocks.push(block?);
    }
    assert!(stream.next().await.is_none(), "the stream ends once");
    Ok(blocks)
}

/// The protocol error of a fetch, as text.
async fn protocol_error(script: Script) -> String {
    let error = fetched(script).await.expect_err("the daemon breaks the rules");
    assert_eq!(error.kind(), Kind::Internal, "{error}");
    assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn a_right_reply_is_read_whole() {
    let bytes = image(7, 512);
    let script = Script::of([
        start(1, 512),
        block(0, &bytes),
        payload(&bytes[..100]),
        payload(&bytes[100..]),
    ]);
    let blocks = fetched(script).await.expect("all is well");
    let [block] = &blocks[..] else { panic!("{} blocks", blocks.len()) };
    assert_eq!(block.key, BlockKey::Expert { key: key(0), layer: 3 });
    assert_eq!(block.id, BlockId::of(&bytes));
    assert_eq!(block.medium, Medium::Dram);
    assert_eq!(block.image, bytes);
    assert_eq!(block.source.map(|source| (source.expert, source.column)), Some((9, 8)));
    let [weight, scale] = &block.tensors[..] else { panic!("{} tensors", block.tensors.len()) };
    assert_eq!((&*weight.name, weight.dtype.name(), &weight.shape[..]), ("w", "U8", &[256][..]));
    assert_eq!((&*scale.name, scale.dtype.name(), &scale.shape[..]), ("s", "U8", &[16, 16][..]));
    assert_eq!(weight.bytes, bytes[..256]);
    assert_eq!(scale.bytes, bytes[256..]);
}

#[tokio::test]
async fn large_images_are_hashed_too() {
    let bytes = image(1, 3 << 20);
    let good = [start(1, 3 << 20), block(0, &bytes), payload(&bytes[..1 << 20])];
    let rest = payload(&bytes[1 << 20..]);
    let blocks = fetched(Script::of(good.iter().cloned().chain([rest]))).await;
    assert_eq!(blocks.expect("all is well")[0].image, bytes);

    let mut flipped = bytes[1 << 20..].to_vec();
    flipped[12_345] ^= 1;
    let error = fetched(Script::of(good.into_iter().chain([payload(&flipped)]))).await;
    assert!(matches!(error, Err(Error::CorruptBlock { .. })), "{error:?}");
}

#[tokio::test]
async fn a_flipped_byte_is_data_loss_unless_nobody_wants_to_know() {
    let bytes = image(7, 512);
    let mut flipped = bytes.clone();
    flipped[300] ^= 4;
    let daemon =
        Daemon::start(Script::of([start(1, 512), block(0, &bytes), payload(&flipped)])).await;
    let client = Client::connect(&daemon.address()).await.expect("a daemon");
    let error = fetched_from(&client).await.expect_err("a wrong byte");
    assert_eq!(error.kind(), Kind::DataLoss);
    let Error::CorruptBlock { key: corrupt, expected, found } = error else {
        panic!("{error:?}");
    };
    assert_eq!(corrupt, BlockKey::Expert { key: key(0), layer: 3 });
    assert_eq!((expected, found), (BlockId::of(&bytes), BlockId::of(&flipped)));

    let mut options = ClientOptions::default();
    options.verify = false;
    let address = daemon.address().parse().expect("an address");
    let careless = Client::connect_with(&address, options).await.expect("a daemon");
    let blocks = fetched_from(&careless).await.expect("unverified");
    assert_eq!(blocks[0].image, flipped);
}

#[tokio::test]
async fn payloads_that_do_not_fit_their_block_are_refused() {
    let bytes = image(7, 512);
    let short = Script::of([start(1, 512), block(0, &bytes), payload(&bytes[..500])]);
    let error = protocol_error(short).await;
    assert!(error.contains("ended after 500 of 512 bytes"), "{error}");

    let next =
        Script::of([start(2, 1024), block(0, &bytes), payload(&bytes[..500]), block(0, &bytes)]);
    let error = protocol_error(next).await;
    assert!(error.contains("the next block came after 500 of 512 bytes"), "{error}");

    let long = Script::of([
        start(1, 512),
        block(0, &bytes),
        payload(&bytes[..500]),
        payload(&bytes[..500]),
    ]);
    let error = protocol_error(long).await;
    assert!(error.contains("488 bytes more than announced"), "{error}");

    let after = Script::of([start(1, 512), block(0, &bytes), payload(&bytes), payload(&bytes)]);
    let error = protocol_error(after).await;
    assert!(error.contains("before a block"), "{error}");

    let empty = Script::of([start(1, 512), block(0, &bytes), payload(&[])]);
    let error = protocol_error(empty).await;
    assert!(error.contains("an empty payload"), "{error}");

    let before = Script::of([start(1, 512), payload(&bytes), block(0, &bytes)]);
    let error = protocol_error(before).await;
    assert!(error.contains("before a block"), "{error}");
}

#[tokio::test]
async fn blocks_that_contradict_themselves_are_refused() {
    let bytes = image(7, 512);
    let with = |change: fn(&mut v1::Block)| {
        let mut part = block(0, &bytes);
        let Some(v1::block_part::Part::Block(block)) = &mut part.part else { unreachable!() };
        change(block);
        Script::of([start(1, 512), part, payload(&bytes)])
    };
    type Case = (fn(&mut v1::Block), &'static str);
    let cases: [Case; 11] = [
        (|block| block.tensors[1].offset = 512, "256 bytes at 512"),
        (|block| block.tensors[1].offset = u64::MAX, "its image has 256 at 256"),
        (|block| block.tensors[1].offset = 0, "256 bytes at 0,"),
        (|block| block.tensors[1].bytes = u64::MAX, "its image has 256 at 256"),
        (|block| block.tensors[1].shape = vec![u64::MAX, 2], "overflows"),
        (|block| block.tensors[1].dtype = "Q9".to_owned(), "no known size"),
        (|block| block.image_bytes = 511, "image_bytes is 511"),
        (|block| block.image_bytes = 1 << 40, "the tensors make 512"),
        (|block| block.block_id = vec![1; 31].into(), "block_id has 31 bytes"),
        (|block| block.router_column = None, "come together"),
        (|block| block.key = None, "key is missing"),
    ];
    for (change, expected) in cases {
        let error = protocol_error(with(change)).await;
        assert!(error.contains(expected), "{error} instead of {expected}");
    }
}

#[tokio::test]
async fn absurd_sizes_are_refused_before_memory_is_taken() {
    let mut part = block(0, &image(7, 512));
    let Some(v1::block_part::Part::Block(block)) = &mut part.part else { unreachable!() };
    block.image_bytes = 1 << 60;
    block.tensors.truncate(1);
    block.tensors[0].shape = vec![1 << 60];
    block.tensors[0].bytes = 1 << 60;
    let script = Script::of([start(1, 1 << 60), part]);
    let error = fetched(script).await.expect_err("an absurd size");
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    let Error::TooLarge { claimed, limit, .. } = error else { panic!("{error:?}") };
    assert_eq!((claimed, limit), (1 << 60, 16 << 30));
}

#[tokio::test]
async fn streams_that_break_their_announcement_are_refused() {
    let bytes = image(7, 512);
    let good = || [block(0, &bytes), payload(&bytes)];
    let missing = Script::of([start(2, 1024)].into_iter().chain(good()));
    let error = protocol_error(missing).await;
    assert!(error.contains("ended after 1 blocks of 512 bytes, 2 blocks"), "{error}");

    let more = Script::of([start(1, 512)].into_iter().chain(good()).chain(good()));
    let error = protocol_error(more).await;
    assert!(error.contains("more came than the 1 blocks of 512 bytes"), "{error}");

    let larger = Script::of([start(1, 511)].into_iter().chain(good()));
    let error = protocol_error(larger).await;
    assert!(error.contains("more came than the 1 blocks of 511 bytes"), "{error}");

    let error = protocol_error(Script::of(good())).await;
    assert!(error.contains("does not begin with its start"), "{error}");
    let error = protocol_error(Script::of([])).await;
    assert!(error.contains("ended before its start"), "{error}");
    let error = protocol_error(Script::of([start(1, 512), start(1, 512)])).await;
    assert!(error.contains("a second start"), "{error}");
    let nothing = v1::BlockPart { part: None };
    let error = protocol_error(Script::of([start(1, 512), nothing])).await;
    assert!(error.contains("without content"), "{error}");
}

#[tokio::test]
async fn a_block_that_nobody_asked_for_is_refused() {
    let bytes = image(7, 512);
    let script = Script::of([start(1, 512), block(1, &bytes), payload(&bytes)]);
    let error = protocol_error(script).await;
    assert!(error.contains("expert t/0/1 at layer 3"), "{error}");
    assert!(error.contains("nobody asked for"), "{error}");
}

#[tokio::test]
async fn statuses_keep_their_details() {
    let bytes = image(7, 512);
    let mut details = ErrorDetails::new();
    details.set_error_info("TIER_SKIPPED", "tpad", [("tier".to_owned(), "t".to_owned())]);
    details.set_retry_info(Some(Duration::from_millis(1500)));
    let status = Status::with_error_details(Code::FailedPrecondition, "tier t is skipped", details);
    let mut script = Script::of([start(2, 1024), block(0, &bytes), payload(&bytes)]);
    script.last = Some(status);
    let daemon = Daemon::start(script).await;
    let client = Client::connect(&daemon.address()).await.expect("a daemon");
    let mut stream = client.fetch_experts(asked(&[0])).await.expect("a start");
    assert_eq!((stream.start().blocks, stream.start().revision), (2, 4));
    let first = stream.next().await.expect("a block").expect("before the failure");
    assert_eq!(first.image, bytes);
    let error = stream.next().await.expect("a failure").expect_err("a failure");
    let refusal = error.refusal().expect("the daemon's status");
    assert_eq!((refusal.kind, refusal.code), (Kind::FailedPrecondition, 9));
    assert_eq!(refusal.message, "tier t is skipped");
    assert_eq!((&*refusal.reason, &*refusal.metadata["tier"]), ("TIER_SKIPPED", "t"));
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(1500)));
    assert!(stream.next().await.is_none());
}

#[tokio::test]
async fn pushback_is_followed_when_asked_to_and_only_then() {
    let bytes = image(7, 512);
    let mut details = ErrorDetails::new();
    details.set_retry_info(Some(Duration::from_millis(1)));
    let busy = Status::with_error_details(Code::ResourceExhausted, "busy", details);
    let mut script = Script::of([start(1, 512), block(0, &bytes), payload(&bytes)]);
    script.turned_away = (2, Some(busy));
    let daemon = Daemon::start(script).await;
    let address = daemon.address().parse().expect("an address");
    let connect = async |retries| {
        let mut options = ClientOptions::default();
        options.retry = RetryPolicy::up_to(retries, Duration::from_secs(1));
        Client::connect_with(&address, options).await.expect("a daemon")
    };
    let error = fetched_from(&connect(0).await).await.expect_err("turned away");
    assert_eq!((error.kind(), daemon.calls()), (Kind::ResourceExhausted, 1));
    let blocks = fetched_from(&connect(1).await).await.expect("the second call succeeds");
    assert_eq!((blocks.len(), daemon.calls()), (1, 3));
}

#[tokio::test]
async fn a_hanging_daemon_ends_at_the_deadline() {
    let mut script = Script::of([start(1, 512)]);
    script.hang = true;
    let daemon = Daemon::start(script).await;
    let client = Client::connect(&daemon.address()).await.expect("a daemon");
    let client = client.with_deadline(Some(Duration::from_millis(200)));
    let mut stream = client.fetch_experts(asked(&[0])).await.expect("a start");
    let error = stream.next().await.expect("an error").expect_err("an error");
    assert!(matches!(error, Error::Deadline { .. }), "{error:?}");
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    // The daemon was told, so that it could have stopped by itself.
    let told = daemon.timeout().expect("a grpc-timeout header");
    assert!(told.ends_with(['n', 'u', 'm']), "{told}");
}

#[tokio::test]
async fn dropping_a_stream_cancels_the_call() {
    let mut script = Script::of([start(1, 512)]);
    script.hang = true;
    let daemon = Daemon::start(script).await;
    let client = Client::connect(&daemon.address()).await.expect("a daemon");
    let stream = client.fetch_experts(asked(&[0])).await.expect("a start");
    drop(stream);
    daemon.stream_was_dropped().await;
}

#[tokio::test]
async fn a_daemon_that_dies_is_a_broken_connection() {
    let bytes = image(7, 512);
    let mut script = Script::of([start(2, 1024), block(0, &bytes), payload(&bytes)]);
    script.hang = true;
    let daemon = Daemon::start(script).await;
    let address = daemon.address();
    let client = Client::connect(&address).await.expect("a daemon");
    let mut stream = client.fetch_experts(asked(&[0])).await.expect("a start");
    stream.next().await.expect("a block").expect("a block");
    daemon.kill();
    let error = stream.next().await.expect("an error").expect_err("an error");
    assert!(matches!(error, Error::Disconnected { .. }), "{error:?}");
    assert_eq!(error.kind(), Kind::Unavailable);
    let error = Client::connect(&address).await.expect_err("nobody listens");
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
    assert!(error.to_string().contains(&address), "{error}");
}

#[tokio::test]
async fn unix_sockets_work_like_ports() {
    let bytes = image(7, 512);
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("tpad.sock");
    let script = Script::of([start(1, 512), block(0, &bytes), payload(&bytes)]);
    let _daemon = Daemon::start_at(&path, script).await;
    for address in [format!("unix://{}", path.display()), path.display().to_string()] {
        let client = Client::connect(&address).await.expect("a daemon");
        assert_eq!(fetched_from(&client).await.expect("all is well").len(), 1);
    }
    let error = Client::connect("/nonexistent/tpad.sock").await.expect_err("no socket");
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn both_receivers_work_over_tls_and_trust_whom_they_are_told_to() {
    let bytes = image(1, 3 << 20);
    let parts = || {
        let pieces = bytes.chunks(1 << 20).map(payload).collect::<Vec<_>>();
        Script::of([start(1, 3 << 20), block(0, &bytes)].into_iter().chain(pieces))
    };
    let certified = rcgen::generate_simple_self_signed(vec!["daemon.test".to_owned()]);
    let certified = certified.expect("a certificate");
    let pem = certified.cert.pem();
    let identity = Identity::from_pem(&pem, certified.signing_key.serialize_pem());
    let daemon = Daemon::start_with_tls(parts(), ServerTlsConfig::new().identity(identity)).await;
    let address = daemon.address().parse().expect("an address");
    let connect = async |receiver, name: &str, pem: &str| {
        let mut options = ClientOptions::default();
        options.receiver = receiver;
        options.tls.ca_pem = Some(pem.as_bytes().to_vec());
        options.tls.server_name = Some(name.to_owned());
        Client::connect_with(&address, options).await
    };
    for receiver in [Receiver::Bulk, Receiver::Ordinary] {
        let client = connect(receiver, "daemon.test", &pem).await.expect("a daemon");
        for _ in 0..3 {
            let blocks = fetched_from(&client).await.expect("all is well");
            assert_eq!(blocks[0].image, bytes);
        }
        let error = connect(receiver, "other.test", &pem).await.expect_err("another name");
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
        let error = connect(receiver, "daemon.test", "").await.expect_err("nobody to trust");
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
    let stranger = rcgen::generate_simple_self_signed(vec!["daemon.test".to_owned()]);
    let stranger = stranger.expect("a certificate").cert.pem();
    let error = connect(Receiver::Bulk, "daemon.test", &stranger).await.expect_err("a stranger");
    assert!(matches!(error, Error::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn memory_that_is_too_small_is_said_with_what_is_needed() {
    let bytes = image(7, 512);
    let script = Script::of([start(1, 512), block(0, &bytes), payload(&bytes)]);
    let daemon = Daemon::start(script).await;
    let client = Client::connect(&daemon.address()).await.expect("a daemon");
    let error = client.fetch_into(asked(&[0]), &mut [0; 511]).await.expect_err("no room");
    assert!(matches!(error, Error::NoRoom { needed: 512, there: 511 }), "{error:?}");
    let mut memory = [0xee; 600];
    let placed = client.fetch_into(asked(&[0]), &mut memory).await.expect("there is room");
    assert_eq!(placed.blocks[0].image, 0..512);
    let ranges: Vec<_> = placed.blocks[0].tensors.iter().map(|tensor| &tensor.bytes).collect();
    assert_eq!(ranges, [&(0..256), &(256..512)]);
    assert_eq!((&memory[..512], memory[512]), (&bytes[..], 0xee));
}

#[tokio::test]
async fn dense_tensors_are_matched_by_name() {
    let bytes = image(7, 512);
    let mut part = block(0, &bytes);
    let Some(v1::block_part::Part::Block(block)) = &mut part.part else { unreachable!() };
    block.key = Some(v1::BlockKey { key: Some(v1::block_key::Key::Dense("w".to_owned())) });
    (block.source_expert, block.router_column) = (None, None);
    let daemon = Daemon::start(Script::of([start(1, 512), part, payload(&bytes)])).await;
    let client = Client::connect(&daemon.address()).await.expect("a daemon");
    let ask = |name: &str| FetchDense { model: "m".to_owned(), names: vec![name.to_owned()] };
    let mut stream = client.fetch_dense(ask("w")).await.expect("a start");
    let found = stream.next().await.expect("a block").expect("a block");
    assert_eq!(found.key, BlockKey::Dense { name: "w".into() });
    let mut stream = client.fetch_dense(ask("v")).await.expect("a start");
    let error = stream.next().await.expect("an error").expect_err("an error");
    assert!(error.to_string().contains("nobody asked for"), "{error}");
}

#[tokio::test]
async fn files_are_checked_like_blocks() {
    let bytes = b"{}".to_vec();
    let digest = BlockId::of(&bytes).as_bytes().to_vec();
    let head = |bytes: u64, digest: &[u8]| v1::FileStart {
        name: "config.json".to_owned(),
        revision: 4,
        generation: 2,
        bytes,
        digest: digest.to_vec().into(),
    };
    let fetch = async |start: v1::FileStart, payload: &[u8]| {
        let mut script = Script::of([]);
        script.file = Some((start, payload.to_vec()));
        let daemon = Daemon::start(script).await;
        let client = Client::connect(&daemon.address()).await.expect("a daemon");
        client.fetch_file("m", "config.json").await
    };
    let file = fetch(head(2, &digest), &bytes).await.expect("all is well");
    assert_eq!((&file.bytes[..], file.revision, file.generation), (&b"{}"[..], 4, 2));
    let error = fetch(head(2, &digest), b"[]").await.expect_err("wrong bytes");
    assert!(matches!(error, Error::CorruptFile { .. }), "{error:?}");
    let error = fetch(head(3, &digest), &bytes).await.expect_err("a short file");
    assert!(error.to_string().contains("after 2 of 3 bytes"), "{error}");
    let error = fetch(head(1, &digest), &bytes).await.expect_err("a long file");
    assert!(error.to_string().contains("2 bytes came where 1"), "{error}");
    let error = fetch(head(1 << 40, &digest), &bytes).await.expect_err("a huge file");
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
    let other = v1::FileStart { name: "other".to_owned(), ..head(2, &digest) };
    let error = fetch(other, &bytes).await.expect_err("another file");
    assert!(error.to_string().contains("came instead"), "{error}");
}

fn page(expert: u32, token: &str, generation: u64) -> v1::ListBlocksResponse {
    let Some(v1::block_part::Part::Block(block)) = block(expert, &image(7, 512)).part else {
        unreachable!()
    };
    v1::ListBlocksResponse {
        blocks: vec![block],
        next_page_token: token.to_owned(),
        revision: 4,
        generation,
    }
}

#[tokio::test]
async fn lists_turn_pages_and_refuse_to_go_in_circles() {
    let list = async |pages: Vec<v1::ListBlocksResponse>| {
        let mut script = Script::of([]);
        script.pages = pages;
        let daemon = Daemon::start(script).await;
        let client = Client::connect(&daemon.address()).await.expect("a daemon");
        let mut pages = client.list_blocks("m", None);
        let mut found = Vec::new();
        while let Some(block) = pages.next().await {
            found.push(block?);
        }
        Ok::<_, Error>(found)
    };
    let found = list(vec![page(0, "1", 2), page(1, "", 2)]).await.expect("two pages");
    assert_eq!(found.len(), 2);
    assert_eq!(found[1].key, BlockKey::Expert { key: key(1), layer: 3 });
    assert_eq!(found[1].tensors[1].offset, 256);

    let error = list(vec![page(0, "1", 2), page(1, "1", 2)]).await.expect_err("a circle");
    assert!(error.to_string().contains("leads nowhere"), "{error}");
    let error = list(vec![page(0, "1", 2), page(1, "", 3)]).await.expect_err("a reload");
    assert!(error.to_string().contains("changed while it was listed"), "{error}");
}

#[tokio::test]
async fn a_list_loses_nothing_when_its_future_is_dropped() {
    let mut script = Script::of([]);
    script.pages = vec![page(0, "1", 2), page(1, "", 2)];
    let daemon = Daemon::start(script).await;
    let client = Client::connect(&daemon.address()).await.expect("a daemon");
    let mut pages = client.list_blocks("m", None);
    for expert in 0..2 {
        assert!(pages.next().now_or_never().is_none(), "its page is on its way");
        let block = pages.next().await.expect("the page is asked for again").expect("a block");
        assert_eq!(block.key, BlockKey::Expert { key: key(expert), layer: 3 });
    }
    assert!(pages.next().await.is_none());
}
