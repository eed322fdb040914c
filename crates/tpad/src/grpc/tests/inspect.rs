use tpad_engine::fixture::Tier;

use super::*;

async fn pages(inside: &Inside, tier: &str, page_size: u32) -> Vec<v1::ListBlocksResponse> {
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            v1::ListBlocksRequest { model: "m".into(), tier: tier.into(), page_size, page_token };
        let page = inside.models().list_blocks(request).await.expect("a page").into_inner();
        page_token = page.next_page_token.clone();
        pages.push(page);
        if page_token.is_empty() {
            return pages;
        }
    }
}

#[tokio::test]
async fn lists_hold_every_block_once_and_no_page_is_too_large() {
    let inside = Inside::start(&Shape::mixed()).await;
    for page_size in [0, 1, 10, u32::MAX] {
        let pages = pages(&inside, "", page_size).await;
        let blocks = pages.into_iter().flat_map(|page| page.blocks);
        let keys = blocks.map(|block| {
            assert_eq!(block.medium(), v1::Medium::ObjectStore, "listing reads no block");
            <(BlockKey, BlockRecord)>::try_from(block).expect("an honest block").0
        });
        let keys: Vec<BlockKey> = keys.collect();
        assert_eq!(keys.len(), inside.checkpoint.blocks.len(), "pages of {page_size}");
        assert!(keys.iter().all(|key| inside.checkpoint.blocks.contains_key(key)));
    }
    let one = pages(&inside, "7", 0).await;
    assert_eq!(one.iter().map(|page| page.blocks.len()).sum::<usize>(), (3 + 1) * 2);
    inside.stop().await;

    let inside =
        Inside::start(&Shape::of(vec![Tier::new(&"t".repeat(128), &[12_000], &[0])])).await;
    let pages = pages(&inside, "", u32::MAX).await;
    let sizes: Vec<usize> = pages.iter().map(prost::Message::encoded_len).collect();
    assert!(sizes.iter().all(|size| *size <= (2 << 20) + 4096), "{sizes:?}");
    assert_eq!(pages.iter().map(|page| page.blocks.len()).sum::<usize>(), 12_001);
    inside.stop().await;
}

#[tokio::test]
async fn replies_of_megabytes_wait_for_those_that_nobody_took() {
    let inside = Inside::start(&Shape::mixed()).await;
    let page = || {
        let mut models = inside.models();
        let request = v1::ListBlocksRequest { model: "m".into(), ..Default::default() };
        async move { models.list_blocks(request).await }
    };
    let mut unread = Vec::new();
    for _ in 0..model::LARGE_REPLIES {
        // The edge keeps the extensions until the reply is over.
        unread.push(page().await.expect("a page").extensions().clone());
    }
    let mut late = Request::new(v1::DescribeModelRequest { model: "m".into() });
    late.extensions_mut().insert(RequestDeadline(Instant::now() + Duration::from_millis(50)));
    let refused = inside.models().describe_model(late).await.expect_err("no room in time");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.get_details_error_info().map(|info| info.reason),
        Some("REPLIES_BUSY".into())
    );

    let mut waits = Box::pin(page());
    assert!(futures::poll!(&mut waits).is_pending());
    unread.pop();
    waits.await.expect("its turn");
    inside.stop().await;
}

#[tokio::test]
async fn models_are_described_as_their_manifests_say() {
    let inside = Inside::start(&Shape::mixed()).await;
    let list = inside.models().list_models(v1::ListModelsRequest {}).await.expect("a list");
    let [served, absent] = &list.into_inner().models[..] else { panic!("two models") };
    assert_eq!((&*served.name, served.state()), ("m", v1::ModelState::Serving));
    assert_eq!(served.tiers, ["tier_1b", "7", "tier_10b"]);
    assert_eq!(served.default_tier_set, ["tier_1b"]);
    assert_eq!((&*absent.name, absent.state()), ("absent", v1::ModelState::Failed));
    assert!(absent.reason.contains("no revision"), "{}", absent.reason);

    let ask = |model: &str| v1::DescribeModelRequest { model: model.into() };
    let model = inside.models().describe_model(ask("m")).await.expect("it is loaded").into_inner();
    assert_eq!(model.layers, [1, 2, 5]);
    assert_eq!(model.files, ["config.json"]);
    assert_eq!(model.dense_tensors, 2);
    let manifest = tpad_manifest::Manifest::parse(model.manifest_json.as_bytes());
    assert_eq!(manifest.expect("it is one").manifest.revision, 1);
    let tier = &model.tiers[2];
    let groups: Vec<u32> = tier.groups.iter().map(|group| group.experts).collect();
    assert_eq!(
        (&*tier.id, &*groups, &*tier.placement),
        ("tier_10b", &[5, 1, 2][..], "object_store")
    );
    let images =
        inside.checkpoint.blocks.iter().filter(|(key, _)| key.to_string().contains("_10b"));
    assert_eq!(tier.bytes, images.map(|(_, image)| image.len() as u64).sum::<u64>());
    assert_eq!(tier.parameters, 8 * 2 * 305);

    let status = inside.models().describe_model(ask("absent")).await.expect_err("it is not loaded");
    assert_eq!(status.code(), Code::Unavailable);
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(retry, Some(Duration::from_secs(1)));
    inside.stop().await;
}

#[tokio::test]
async fn status_is_the_engines_document() {
    let inside = Inside::start(&Shape::mixed()).await;
    let reply = inside.models().get_status(v1::GetStatusRequest {}).await.expect("a status");
    let text = reply.into_inner().status_json;
    let mut found: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let mut expected = serde_json::to_value(inside.engine.status()).expect("it serializes");
    for document in [&mut found, &mut expected] {
        document["uptime_seconds"] = 0.into();
        assert!(document["process"]["resident_bytes"].as_u64() > Some(0));
        document["process"] = 0.into();
    }
    assert_eq!(found, expected);
    assert_eq!(found["models"][0]["tiers"][1]["blocks"], (3 + 1) * 2);
    inside.stop().await;
}
