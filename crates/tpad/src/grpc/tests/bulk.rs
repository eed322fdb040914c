//! Fetches on the wire, frame by frame.

use bytes::{BufMut as _, Bytes};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tonic::body::Body;
use tonic::codegen::Service as _;
use tpad_engine::Selection;
use tpad_engine::fixture::Tier;
use tpad_store::ReadOptions;

use super::*;

/// A call with one message, sent as it is.
async fn call(
    inside: &Inside,
    method: &str,
    message: &impl prost::Message,
    encoding: Option<&str>,
) -> http::Response<Body> {
    let mut bytes = vec![0];
    bytes.put_u32(u32::try_from(message.encoded_len()).expect("short"));
    message.encode(&mut bytes).expect("vectors grow");
    let mut request = http::Request::post(format!("http://m/tpad.v1.ExpertService/{method}"))
        .header("content-type", "application/grpc");
    if let Some(encoding) = encoding {
        request = request.header("grpc-encoding", encoding);
    }
    let body = Body::new(http_body_util::Full::new(Bytes::from(bytes)));
    let mut routes = inside.routes.clone();
    routes.call(request.body(body).expect("a request")).await.expect("it is answered")
}

#[tokio::test]
async fn payloads_are_handed_on_where_they_lie() {
    let tier = Tier { expert_bytes: (2 << 20) + 9999, ..Tier::new("a", &[1], &[0]) };
    let inside = Inside::start(&Shape::of(vec![tier])).await;
    let generation = inside.engine.open("m").expect("it serves");
    let selection = Selection { tiers: vec!["a".parse().expect("an id")], ..Selection::default() };
    let soon = Instant::now() + Duration::from_secs(20);
    let selected = generation.select(&selection, soon).await.expect("few");
    let (key, _) = selected.get(0).expect("an expert");
    let block = generation.read(key, ReadOptions::demand(soon)).await.expect("it is there");
    let slot = block.served.bytes.to_bytes();

    let request = v1::FetchExpertsRequest {
        model: "m".into(),
        tiers: vec!["a".into()],
        ..Default::default()
    };
    let response = call(&inside, "FetchExperts", &request, None).await;
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let mut body = response.into_body();
    let (mut payload, mut small) = (Vec::new(), 0);
    let trailers = loop {
        let frame = body.frame().await.expect("it ends with trailers").expect("it is well");
        match frame.into_data() {
            Ok(data) if data.len() < 4096 => small += data.len(),
            Ok(data) => payload.push(data),
            Err(frame) => break frame.into_trailers().expect("trailers"),
        }
    };
    assert_eq!(trailers["grpc-status"], "0");
    assert!(body.is_end_stream());
    let mut at = slot.as_ptr();
    for piece in &payload {
        assert_eq!(piece.as_ptr(), at, "a slice of the slot, not a copy");
        at = at.wrapping_add(piece.len());
    }
    assert_eq!(payload.iter().map(Bytes::len).sum::<usize>(), slot.len());
    assert!(small < 1024, "{small} bytes of headers");
    inside.stop().await;
}

#[tokio::test]
async fn what_the_generated_service_refuses_is_refused_here() {
    let inside = Inside::start(&Shape::mixed()).await;
    let request = v1::FetchFileRequest { model: "m".into(), name: "absent.json".into() };
    let status = async |response: http::Response<Body>| {
        Status::from_header_map(response.headers()).expect("it ends with its headers")
    };
    let refused = status(call(&inside, "FetchFile", &request, None).await).await;
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.get_details_error_info().is_some(), "with its details");
    let refused = status(call(&inside, "FetchFile", &request, Some("gzip")).await).await;
    assert_eq!(refused.code(), Code::Unimplemented);
    let same = status(call(&inside, "FetchFile", &request, Some("identity")).await).await;
    assert_eq!(same.code(), Code::NotFound);
    let unknown = status(call(&inside, "FetchNothing", &request, None).await).await;
    assert_eq!(unknown.code(), Code::Unimplemented);
    let large = v1::FetchFileRequest { model: "m".into(), name: "x".repeat(5 << 20) };
    let refused = status(call(&inside, "FetchFile", &large, None).await).await;
    assert_eq!(refused.code(), Code::OutOfRange, "which the edge words");

    let nothing = futures::stream::empty::<v1::FetchFileRequest>();
    let mut grpc = tonic::client::Grpc::new(inside.routes.clone());
    grpc.ready().await.expect("it is ready");
    let path = http::uri::PathAndQuery::from_static("/tpad.v1.ExpertService/FetchFile");
    let codec = tonic_prost::ProstCodec::<v1::FetchFileRequest, v1::FetchFileResponse>::default();
    let empty = grpc.streaming(Request::new(nothing), path, codec).await;
    assert_eq!(empty.expect_err("no message").code(), Code::Internal);
    inside.stop().await;
}
