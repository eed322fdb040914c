use futures::StreamExt as _;
use tpad_engine::Selection;
use tpad_engine::fixture::{Tier, shard_of};
use tpad_proto::v1::fetch_file_response::Part as FilePart;

use super::super::call::Call;
use super::super::look_ahead::Budget;
use super::super::resume::Resume;
use super::super::stream::{BlockStream, PAYLOAD_BYTES};
use super::*;

fn tiers(names: &[&str]) -> v1::FetchExpertsRequest {
    v1::FetchExpertsRequest {
        model: "m".into(),
        tiers: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

async fn experts(inside: &Inside, request: v1::FetchExpertsRequest) -> Fetched {
    let reply = inside.experts().fetch_experts(request).await.expect("it is answered");
    drain(reply.into_inner(), |message| message.part).await
}

fn images<'a>(inside: &'a Inside, which: &str) -> BTreeMap<&'a BlockKey, &'a Vec<u8>> {
    inside.checkpoint.blocks.iter().filter(|(key, _)| key.to_string().starts_with(which)).collect()
}

fn assert_equals(fetched: &Fetched, expected: &BTreeMap<&BlockKey, &Vec<u8>>) {
    let found: BTreeMap<&BlockKey, &Vec<u8>> =
        fetched.blocks.iter().map(|(key, (_, image))| (key, image)).collect();
    assert!(fetched.end.is_none(), "{:?}", fetched.end);
    assert_eq!(&found, expected);
    assert_eq!(fetched.start.blocks, found.len() as u64);
    assert_eq!(fetched.start.bytes, found.values().map(|image| image.len() as u64).sum::<u64>());
}

#[tokio::test]
async fn experts_routers_and_dense_tensors_come_as_they_were_written() {
    let mut shape = Shape::mixed();
    shape.dense.push(("empty", 0));
    let inside = Inside::start(&shape).await;
    let fetched = experts(&inside, tiers(&["tier_1b", "7", "tier_10b"])).await;
    assert_equals(&fetched, &images(&inside, "expert"));
    assert_eq!((fetched.start.revision, fetched.start.generation), (1, 1));
    for (key, (record, _)) in &fetched.blocks {
        let source = record.source.unwrap_or_else(|| panic!("{key} has no source"));
        assert_eq!(source.column, source.expert + 100);
    }

    let all = vec!["tier_1b".to_owned(), "7".into(), "tier_10b".into()];
    let request = v1::FetchRoutersRequest { model: "m".into(), tiers: all, ..Default::default() };
    let reply = inside.experts().fetch_routers(request).await.expect("it is answered");
    let fetched = drain(reply.into_inner(), |message| message.part).await;
    assert_equals(&fetched, &images(&inside, "router"));

    let request = v1::FetchDenseRequest { model: "m".into(), ..Default::default() };
    let reply = inside.experts().fetch_dense(request).await.expect("it is answered");
    let fetched = drain(reply.into_inner(), |message| message.part).await;
    assert_equals(&fetched, &images(&inside, "dense"));
    inside.stop().await;
}

#[tokio::test]
async fn images_come_in_pieces_whatever_their_size() {
    let piece = PAYLOAD_BYTES as u64;
    for bytes in [1, piece - 512, piece - 256, piece - 255, piece + 1, 3 * piece + 7] {
        let mut tier = Tier::new("t", &[3], &[0]);
        tier.expert_bytes = bytes;
        let inside = Inside::start(&Shape::of(vec![tier])).await;
        let fetched = experts(&inside, tiers(&["t"])).await;
        assert_equals(&fetched, &images(&inside, "expert"));
        assert!(fetched.largest <= PAYLOAD_BYTES, "{}", fetched.largest);
        inside.stop().await;
    }
}

#[tokio::test]
async fn a_block_that_fails_stops_no_other_and_the_end_names_it() {
    let inside = Inside::start(&Shape::mixed()).await;
    inside.checkpoint.flip(&shard_of("7", 1), 40);
    let fetched = experts(&inside, tiers(&["7", "tier_1b"])).await;
    assert_eq!(fetched.start.blocks, 6 + 18);
    assert_eq!(fetched.blocks.len(), 6 + 18 - 1);
    let end = fetched.end.expect("one failed");
    assert_eq!(end.code(), Code::DataLoss);
    let info = end.get_details_error_info().expect("it has details");
    assert_eq!((&*info.domain, &*info.reason), ("tpad", "BLOCK_UNREADABLE"));
    assert_eq!(info.metadata["failed_blocks"], "1");
    assert_eq!(info.metadata["blocks"], "24");
    assert_eq!(info.metadata["keys"], "expert 7/0/0 at layer 2");
    inside.stop().await;
}

#[tokio::test]
async fn the_end_names_no_more_keys_than_fit() {
    let inside = Inside::start(&Shape::of(vec![Tier::new("t", &[100], &[0])])).await;
    std::fs::remove_file(inside.checkpoint.path().join(shard_of("t", 1))).expect("it was there");
    let fetched = experts(&inside, tiers(&["t"])).await;
    assert!(fetched.blocks.is_empty());
    let info = fetched.end.and_then(|end| end.get_details_error_info()).expect("it has details");
    assert_eq!(info.metadata["failed_blocks"], "100");
    assert_eq!(info.metadata["keys"].split("; ").count(), 16);
    inside.stop().await;
}

#[tokio::test]
async fn after_its_deadline_a_stream_starts_no_reads_and_says_so() {
    let inside = Inside::start(&Shape::mixed()).await;
    let generation = inside.engine.open("m").expect("it is loaded");
    let all = Selection { tiers: vec!["7".parse().expect("an id")], ..Selection::default() };
    let deadline = Instant::now() + Duration::from_secs(20);
    let selected = generation.select(&all, deadline).await.expect("it exists");
    let mut late = Request::new(());
    late.extensions_mut().insert(RequestDeadline(Instant::now()));
    let call = Call::of(&late, Duration::from_secs(20));
    let mut stream =
        BlockStream::new(selected, Resume::default(), call, &Budget::new(1 << 20, 1 << 20));
    let start = stream.next().await.expect("a start").expect("no error yet");
    assert!(matches!(start.part, Some(Part::Start(_))));
    let end = stream.next().await.expect("an end").expect_err("it is late");
    assert_eq!(end.code(), Code::DeadlineExceeded);
    let info = end.get_details_error_info().expect("it has details");
    assert_eq!(info.metadata["failed_blocks"], "6");
    assert!(stream.next().await.is_none());
    inside.stop().await;
}

#[tokio::test]
async fn what_a_stream_has_ahead_is_bounded_and_comes_back_when_its_client_leaves() {
    let mut tier = Tier::new("t", &[8], &[0, 1]);
    tier.expert_bytes = 4000;
    let inside = Inside::start(&Shape::of(vec![tier])).await;
    let generation = inside.engine.open("m").expect("it is loaded");
    let all = Selection { tiers: vec!["t".parse().expect("an id")], ..Selection::default() };
    let deadline = Instant::now() + Duration::from_secs(20);
    // Room for one block of each stream, and for three that they share.
    let budget = Budget::new(1 << 20, 3 * 8192);
    let mut streams = Vec::new();
    for _ in 0..3 {
        let selected = generation.select(&all, deadline).await.expect("it exists");
        let call = Call::of(&Request::new(()), Duration::from_secs(20));
        let mut stream = BlockStream::new(selected, Resume::default(), call, &budget);
        // A start and the first block's header: the others are being read.
        for _ in 0..2 {
            stream.next().await.expect("a message").expect("no error");
        }
        streams.push(stream);
    }
    assert_eq!(budget.free_units(), 0, "the first streams took what there was to share");
    let mut last = streams.pop().expect("three");
    let mut messages = 2;
    while let Some(message) = last.next().await {
        message.expect("no error");
        messages += 1;
    }
    assert_eq!(messages, 1 + 16 * 2, "a stream without a share comes to its end");
    drop(streams);
    assert_eq!(budget.free_units(), 6);
    inside.stop().await;
}

#[tokio::test]
async fn files_come_in_pieces_with_their_digest() {
    let file: Vec<u8> = (0..PAYLOAD_BYTES * 2 + 5).map(|n| n.to_le_bytes()[0]).collect();
    let mut shape = Shape::mixed();
    shape.files = vec![("tokenizer.json", file.clone()), ("empty.json", Vec::new())];
    let inside = Inside::start(&shape).await;
    for (name, content) in &shape.files {
        let request = v1::FetchFileRequest { model: "m".into(), name: (*name).into() };
        let reply = inside.experts().fetch_file(request).await.expect("it is answered");
        let mut stream = reply.into_inner();
        let first = stream.message().await.expect("open").expect("a start");
        let Some(FilePart::Start(start)) = first.part else { panic!("no start") };
        assert_eq!((start.bytes, &*start.name), (content.len() as u64, *name));
        assert_eq!(start.digest, *tpad_manifest::Digest::of(content).as_bytes().as_slice());
        let mut found = Vec::new();
        while let Some(message) = stream.message().await.expect("open") {
            let Some(FilePart::Payload(payload)) = message.part else { panic!("no payload") };
            assert!((1..=PAYLOAD_BYTES).contains(&payload.len()));
            found.extend_from_slice(&payload);
        }
        assert!(&found == content, "{name}");
    }
    inside.stop().await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_told_where() {
    let inside = Inside::start(&Shape::mixed()).await;
    let key = |tier: &str| v1::ExpertKey { tier: tier.into(), group: 0, expert: 0 };
    let request = |change: fn(&mut v1::FetchExpertsRequest)| {
        let mut request = v1::FetchExpertsRequest {
            model: "m".into(),
            keys: vec![key("7")],
            ..Default::default()
        };
        change(&mut request);
        let mut experts = inside.experts();
        async move { experts.fetch_experts(request).await.map(|_| ()) }
    };
    type Change = fn(&mut v1::FetchExpertsRequest);
    let cases: [(Change, Code, &str, &str); 7] = [
        (|r| r.keys.clear(), Code::InvalidArgument, "NOTHING_SELECTED", "nothing was asked for"),
        (|r| r.keys[0].tier.clear(), Code::InvalidArgument, "REQUEST_INVALID", "keys[0]: tier"),
        (
            |r| r.blocks.push(v1::ExpertAtLayer { key: None, layer: 1 }),
            Code::InvalidArgument,
            "REQUEST_INVALID",
            "blocks[0]: key is missing",
        ),
        (|r| r.tiers.push("a b".into()), Code::InvalidArgument, "REQUEST_INVALID", "tiers[0]"),
        (|r| r.layers.push(1), Code::NotFound, "LAYER_NOT_FOUND", "it has 2, 5"),
        (|r| r.model = "n".into(), Code::NotFound, "MODEL_NOT_FOUND", "m, absent"),
        (|r| r.model = "absent".into(), Code::Unavailable, "MODEL_NOT_LOADED", "no revision"),
    ];
    for (change, code, reason, text) in cases {
        let status = request(change).await.expect_err(reason);
        let info = status.get_details_error_info().expect("it has details");
        assert_eq!((status.code(), &*info.reason), (code, reason), "{status}");
        assert!(status.message().contains(text), "{:?} lacks {text:?}", status.message());
    }
    inside.stop().await;
}
