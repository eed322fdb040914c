use tpad_manifest::{CostClass, MaskReason, RoutingMask};
use tpad_proto::v1::tier_set::Set;
use tpad_proto::v1::watch_routing_mask_response::Event;

use super::*;

fn request(set: Option<Set>) -> v1::GetRoutingMaskRequest {
    let tier_set = set.map(|set| v1::TierSet { set: Some(set) });
    v1::GetRoutingMaskRequest { model: "m".into(), tier_set, ..Default::default() }
}

fn tiers(tiers: &[&str]) -> Option<Set> {
    let tiers = tiers.iter().map(ToString::to_string).collect();
    Some(Set::Tiers(v1::TierList { tiers }))
}

async fn get(
    inside: &Inside,
    request: v1::GetRoutingMaskRequest,
) -> Result<v1::RoutingMask, Status> {
    let reply = inside.routing().get_routing_mask(request).await?.into_inner();
    Ok(reply.mask.expect("a reply has a mask"))
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().expect("it has one").reason
}

#[tokio::test]
async fn masks_come_with_sources_and_an_etag_that_saves_them() {
    let inside = Inside::start(&Shape::mixed()).await;
    let all = request(tiers(&["tier_10b", "tier_1b", "gone", "7", "gone"]));
    let message = get(&inside, all.clone()).await.expect("a mask");
    let (etag, generation) = (message.etag.clone(), message.generation);
    let mask = RoutingMask::try_from(message).expect("an honest mask");
    let ids: Vec<&str> = mask.tiers.iter().map(|tier| &*tier.tier).collect();
    assert_eq!(ids, ["tier_1b", "7", "tier_10b"], "manifest order, whatever the request's");
    let groups: Vec<u32> = mask.tiers[2].groups.iter().map(|group| group.ones()).collect();
    assert_eq!(groups, [5, 1, 2]);
    assert_eq!(mask.tiers[1].sources[0].layers, [2, 5]);
    assert_eq!(mask.tiers[1].sources[0].groups[0][2].column, 102);
    let [masked] = &mask.masked[..] else { panic!("{:?}", mask.masked) };
    assert_eq!((&*masked.tier, masked.reason), ("gone", MaskReason::UnknownTier));

    let again = v1::GetRoutingMaskRequest { etag: etag.clone(), ..all.clone() };
    let unchanged = get(&inside, again).await.expect("a mask");
    assert!(unchanged.unchanged && unchanged.tiers.is_empty() && unchanged.masked.is_empty());
    assert_eq!((&unchanged.etag, unchanged.generation, unchanged.revision), (&etag, generation, 1));
    let bare = v1::GetRoutingMaskRequest { omit_sources: true, etag, ..all };
    let bare = get(&inside, bare).await.expect("a mask");
    assert!(!bare.unchanged, "without sources it is another mask");
    assert!(bare.tiers.iter().all(|tier| tier.sources.is_empty()));
    inside.stop().await;
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_its_reason() {
    let inside = Inside::start(&Shape::mixed()).await;
    let refused = |request| {
        let inside = &inside;
        async move {
            let status = get(inside, request).await.expect_err("refused");
            (status.code(), reason(&status), status.message().to_owned())
        }
    };
    let (code, why, text) = refused(request(tiers(&["x", "y"]))).await;
    assert_eq!((code, &*why), (Code::FailedPrecondition, "MASK_EMPTY"));
    assert!(text.contains("tier x is unknown, tier y is unknown"), "{text}");
    let (code, why, _) = refused(request(Some(Set::Named("small".into())))).await;
    assert_eq!((code, &*why), (Code::NotFound, "TIER_SET_NOT_FOUND"));

    let future =
        v1::GetRoutingMaskRequest { tier_set: Some(v1::TierSet { set: None }), ..request(None) };
    let many = (0..5000).map(|n| n.to_string()).collect();
    let level = |level| v1::GetRoutingMaskRequest {
        resident: Some(v1::Residency { level, layers: vec![] }),
        ..request(None)
    };
    for (request, field) in [
        (future, "tier_set"),
        (request(Some(Set::Tiers(v1::TierList { tiers: many }))), "tier_set"),
        (request(Some(Set::UpTo("x".repeat(129)))), "tier_set"),
        (level(0), "resident.level"),
        (level(v1::CostClass::Unavailable.into()), "resident.level"),
        (level(99), "resident.level"),
    ] {
        let (code, why, text) = refused(request).await;
        assert_eq!((code, &*why), (Code::InvalidArgument, "REQUEST_INVALID"), "{text}");
        assert!(text.starts_with(field), "{text}");
    }
    let unknown = v1::GetRoutingMaskRequest { model: "x".into(), ..request(None) };
    assert_eq!(refused(unknown).await.0, Code::NotFound);
    let absent = v1::GetRoutingMaskRequest { model: "absent".into(), ..request(None) };
    assert_eq!(refused(absent).await.0, Code::Unavailable);
    inside.stop().await;
}

#[tokio::test]
async fn resident_masks_follow_what_was_fetched() {
    let inside = Inside::start(&Shape::mixed()).await;
    let asked = v1::GetRoutingMaskRequest {
        omit_sources: true,
        resident: Some(v1::Residency { level: v1::CostClass::Dram.into(), layers: vec![2] }),
        ..request(tiers(&["tier_1b", "tier_10b"]))
    };
    let status = get(&inside, asked.clone()).await.expect_err("nothing was read");
    assert_eq!((status.code(), &*reason(&status)), (Code::FailedPrecondition, "MASK_EMPTY"));
    let key = v1::ExpertKey { tier: "tier_1b".into(), group: 0, expert: 3 };
    let fetch = v1::FetchExpertsRequest {
        model: "m".into(),
        keys: vec![key],
        layers: vec![2],
        ..Default::default()
    };
    let stream = inside.experts().fetch_experts(fetch).await.expect("it is there").into_inner();
    drain(stream, |message: v1::FetchExpertsResponse| message.part).await;

    let mask = RoutingMask::try_from(get(&inside, asked).await.expect("a mask"));
    let mask = mask.expect("an honest mask");
    let resident = mask.resident.expect("it was asked for");
    let [layer] = &resident.layers[..] else { panic!("one layer was asked for") };
    let group = &layer.tiers[0].groups[0];
    assert_eq!(group.experts.iter().collect::<Vec<_>>(), [false, false, false, true]);
    assert_eq!((group.costs[0], group.costs[3]), (CostClass::ObjectStore, CostClass::Dram));
    // tier_10b is not at layer 2.
    let costs = layer.tiers[1].groups.iter().flat_map(|group| &group.costs);
    assert!(costs.into_iter().all(|cost| *cost == CostClass::Unavailable));
    let told = mask.masked.iter().find(|masked| masked.tier == "tier_10b").expect("it is told");
    assert_eq!((told.reason, &*told.detail), (MaskReason::UnavailableBlock, "8 of 8 blocks"));
    inside.stop().await;
}

#[tokio::test]
async fn watches_begin_with_what_is_and_end_with_the_engine() {
    let inside = Inside::start(&Shape::mixed()).await;
    let ask = |model: &str, set: Option<Set>, etag: &str| v1::WatchRoutingMaskRequest {
        model: model.into(),
        tier_set: set.map(|set| v1::TierSet { set: Some(set) }),
        omit_sources: false,
        etag: etag.into(),
    };
    let open = async |request| inside.routing().watch_routing_mask(request).await;
    let first = async |request| {
        let mut stream = open(request).await.expect("it opens").into_inner();
        let event = stream.message().await.expect("open").expect("an event").event;
        (event.expect("it says something"), stream)
    };
    let (Event::Mask(mask), mut watch) = first(ask("m", None, "")).await else {
        panic!("the model is served")
    };
    assert_eq!(mask.tiers.len(), 1);
    let (Event::Mask(same), _) = first(ask("m", None, &mask.etag)).await else {
        panic!("the model is served")
    };
    assert!(same.unchanged && same.tiers.is_empty());
    let (Event::None(none), _) = first(ask("absent", None, "")).await else {
        panic!("it cannot be loaded")
    };
    assert_eq!(none.reason, "MODEL_NOT_LOADED");
    let (Event::None(none), _) = first(ask("m", tiers(&["x"]), "")).await else {
        panic!("nothing is left")
    };
    assert_eq!(none.reason, "MASK_EMPTY");
    assert_eq!(open(ask("x", None, "")).await.expect_err("unknown").code(), Code::NotFound);

    // What another model does is no news.
    let again = inside.engine.reload("absent", Instant::now() + Duration::from_secs(20)).await;
    assert_eq!(again.expect_err("it has no revision").reason(), "LOAD_FAILED");
    tokio::task::yield_now().await;
    assert!(futures::poll!(std::pin::pin!(watch.message())).is_pending());
    inside.engine.shutdown().await;
    let end = tokio::time::timeout(Duration::from_secs(5), watch.message()).await;
    let end = end.expect("the engine's end is told").expect_err("no mask follows it");
    assert_eq!(end.code(), Code::Unavailable, "{end}");
    assert_eq!(reason(&end), "STOPPING");
    assert!(watch.message().await.expect("nothing follows the end").is_none());
}
