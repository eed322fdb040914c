//! Fetches that go on with others.

use super::*;

/// A stream's blocks in order: ordinal, offset, key, and what of the image came.
async fn fetched(
    inside: &Inside,
    resume: Option<v1::Resume>,
) -> Result<(v1::StreamStart, Vec<(v1::Block, Vec<u8>)>), Status> {
    let request = v1::FetchExpertsRequest {
        model: "m".into(),
        tiers: vec!["tier_1b".into()],
        resume,
        ..Default::default()
    };
    let mut stream = inside.experts().fetch_experts(request).await?.into_inner();
    let (mut start, mut blocks) = (None, Vec::new());
    while let Some(message) = stream.message().await? {
        match message.part.and_then(|part| part.part).expect("a part") {
            Part::Start(found) => start = Some(found),
            Part::Block(block) => blocks.push((block, Vec::new())),
            Part::Payload(payload) => {
                blocks.last_mut().expect("a block").1.extend_from_slice(&payload);
            }
        }
    }
    Ok((start.expect("a start"), blocks))
}

#[tokio::test]
async fn a_stream_goes_on_where_it_broke_and_leaves_out_what_came() {
    let inside = Inside::start(&Shape::mixed()).await;
    let (start, mut all) = fetched(&inside, None).await.expect("all of it");
    assert!(!start.resumed && all.len() > 6, "{} blocks", all.len());
    all.sort_by_key(|(block, _)| block.ordinal);
    let ordinals = all.iter().map(|(block, _)| block.ordinal).collect::<Vec<_>>();
    assert_eq!(ordinals, (0..all.len() as u64).map(Some).collect::<Vec<_>>());

    let (broken, image) = all[4].clone();
    let received =
        vec![v1::OrdinalRange { first: 0, count: 2 }, v1::OrdinalRange { first: 3, count: 1 }];
    let offset = image.len() as u64 / 3;
    let partial = v1::PartialBlock { ordinal: 4, block_id: broken.block_id.clone(), offset };
    let resume = v1::Resume { revision: start.revision, received, partial: Some(partial) };
    let (again, mut rest) = fetched(&inside, Some(resume.clone())).await.expect("the rest");
    assert!(again.resumed);
    assert_eq!((again.blocks, again.bytes), (start.blocks, start.bytes));
    let (first, tail) = rest.remove(0);
    assert_eq!((first.ordinal, first.offset), (Some(4), offset));
    assert_eq!((first.image_bytes, &tail[..]), (broken.image_bytes, &image[image.len() / 3..]));
    rest.sort_by_key(|(block, _)| block.ordinal);
    let expected: Vec<_> =
        all.iter().enumerate().filter(|(n, _)| ![0, 1, 3, 4].contains(n)).collect();
    assert_eq!(rest.len(), expected.len());
    for ((block, bytes), (_, (before, image))) in rest.iter().zip(expected) {
        assert_eq!((&block.key, block.offset, bytes), (&before.key, 0, image));
    }

    // Another block by now: it comes whole.
    let mut other = resume.clone();
    other.partial.as_mut().expect("it is there").block_id = vec![9; 32].into();
    let (_, rest) = fetched(&inside, Some(other)).await.expect("the rest");
    assert_eq!((rest[0].0.ordinal, rest[0].0.offset, &rest[0].1), (Some(4), 0, &image));

    // All but its end came.
    let mut end = resume;
    end.partial.as_mut().expect("it is there").offset = broken.image_bytes;
    let (_, rest) = fetched(&inside, Some(end)).await.expect("the rest");
    assert_eq!((rest[0].0.ordinal, rest[0].1.len()), (Some(4), 0));
    inside.stop().await;
}

#[tokio::test]
async fn what_cannot_be_resumed_is_refused_with_its_reason() {
    let inside = Inside::start(&Shape::mixed()).await;
    let (start, all) = fetched(&inside, None).await.expect("all of it");
    let blocks = all.len() as u64;
    let of = |revision, received: &[(u64, u64)], partial: Option<(u64, usize)>| v1::Resume {
        revision,
        received: received
            .iter()
            .map(|(first, count)| v1::OrdinalRange { first: *first, count: *count })
            .collect(),
        partial: partial.map(|(ordinal, id)| v1::PartialBlock {
            ordinal,
            block_id: vec![0; id].into(),
            offset: 0,
        }),
    };
    let revision = start.revision;
    let changed = fetched(&inside, Some(of(revision + 1, &[], None))).await;
    let changed = changed.expect_err("another revision");
    let reason = |status: &Status| status.get_details_error_info().expect("its details").reason;
    assert_eq!(
        (changed.code(), &*reason(&changed)),
        (Code::FailedPrecondition, "REVISION_CHANGED")
    );
    for resume in [
        of(revision, &[(0, blocks + 1)], None),
        of(revision, &[(u64::MAX, 2)], None),
        of(revision, &[(1, u64::MAX)], None),
        of(revision, &[(3, 2), (4, 1)], None),
        of(revision, &[(3, 2), (0, 1)], None),
        of(revision, &[], Some((blocks, 32))),
        of(revision, &[(0, 2)], Some((1, 32))),
        of(revision, &[], Some((0, 31))),
    ] {
        let refused = fetched(&inside, Some(resume.clone())).await.expect_err("no sense");
        assert_eq!(&*reason(&refused), "REQUEST_INVALID", "{resume:?}");
    }
    let everything = of(revision, &[(0, blocks)], None);
    let (_, rest) = fetched(&inside, Some(everything)).await.expect("nothing is left");
    assert!(rest.is_empty());
    inside.stop().await;
}
