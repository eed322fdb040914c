//! Administration, called without a network.

use super::*;
use crate::edge::Peer;

fn from<T>(peer: Option<Peer>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(peer) = peer {
        request.extensions_mut().insert(peer);
    }
    request
}

fn local<T>(message: T) -> Request<T> {
    from(Some(Peer::Unix { uid: Some(0), pid: Some(1) }), message)
}

fn tcp(remote: &str) -> Option<Peer> {
    Some(Peer::Tcp { local: None, remote: remote.parse().expect("an address") })
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

fn load(model: &str, root: String) -> v1::LoadModelRequest {
    v1::LoadModelRequest { model: model.into(), root, ..Default::default() }
}

#[tokio::test]
async fn every_method_is_refused_to_peers_of_other_machines() {
    let inside = Inside::start(&Shape::mixed()).await;
    let root = inside.checkpoint.root();
    for peer in [tcp("10.0.0.7:4000"), tcp("[2001:db8::1]:4000"), None] {
        let refused = [
            inside.admin().load_model(from(peer, load("n", root.clone()))).await.map(drop),
            inside
                .admin()
                .reload_model(from(
                    peer,
                    v1::ReloadModelRequest { model: "m".into(), target: None },
                ))
                .await
                .map(drop),
            inside
                .admin()
                .unload_model(from(peer, v1::UnloadModelRequest { model: "m".into() }))
                .await
                .map(drop),
            inside.admin().drain(from(peer, v1::DrainRequest {})).await.map(drop),
            inside.admin().pin(from(peer, v1::PinRequest::default())).await.map(drop),
            inside.admin().unpin(from(peer, v1::UnpinRequest::default())).await.map(drop),
            inside.admin().evict(from(peer, v1::EvictRequest::default())).await.map(drop),
        ];
        let methods = methods();
        let known = methods.iter().filter(|method| method.contains("AdminService"));
        assert_eq!(refused.len(), known.count(), "each method is tried");
        for refused in refused {
            let status = refused.expect_err("it is not local");
            assert_eq!(status.code(), Code::PermissionDenied, "{peer:?}");
            assert_eq!(reason(&status), "PEER_NOT_LOCAL");
        }
    }
    assert!(inside.engine.ready().is_ready() && !inside.drain.is_cancelled());
    assert!(inside.engine.open("m").is_ok());
    assert_eq!(inside.engine.models().len(), 2);
    inside.stop().await;
}

#[tokio::test]
async fn models_come_and_go() {
    let inside = Inside::start(&Shape::mixed()).await;
    let mut admin = inside.admin();
    let over = tcp("127.0.0.1:4000");
    let root = inside.checkpoint.root();
    let loaded = admin.load_model(from(over, load("n", root.clone()))).await;
    let loaded = loaded.expect("it is loaded").into_inner().loaded.expect("it says what");
    assert_eq!(loaded.outcome(), v1::LoadOutcome::Loaded);
    assert!(inside.engine.open("n").is_ok());

    let twice = admin.load_model(local(load("n", root))).await.expect_err("the name is taken");
    assert_eq!((twice.code(), &*reason(&twice)), (Code::FailedPrecondition, "MODEL_EXISTS"));

    let same =
        admin.reload_model(local(v1::ReloadModelRequest { model: "n".into(), target: None })).await;
    let same = same.expect("it is loaded").into_inner().loaded.expect("it says what");
    assert_eq!(same.outcome(), v1::LoadOutcome::Unchanged);
    assert_eq!((same.revision, same.generation), (loaded.revision, loaded.generation));

    let unload = || local(v1::UnloadModelRequest { model: "n".into() });
    let unloaded = admin.unload_model(unload()).await.expect("it is there").into_inner();
    assert_eq!(unloaded.revision, loaded.revision);
    let gone = admin.unload_model(unload()).await.expect_err("it is gone");
    assert_eq!((gone.code(), &*reason(&gone)), (Code::NotFound, "MODEL_NOT_FOUND"));
    inside.stop().await;
}

#[tokio::test]
async fn models_that_cannot_be_are_refused() {
    let inside = Inside::start(&Shape::mixed()).await;
    let mut admin = inside.admin();
    let bases = |count| vec!["/b".to_owned(); count];
    let requests = [
        ("model", load("", "/x".into())),
        ("model", load("a b", "/x".into())),
        ("model", load(&"m".repeat(257), "/x".into())),
        ("root", load("n", String::new())),
        ("root", load("n", "models/n".into())),
        ("root", load("n", format!("/{}", "x".repeat(4096)))),
        (
            "allowed_bases",
            v1::LoadModelRequest { allowed_bases: bases(65), ..load("n", "/x".into()) },
        ),
    ];
    for (field, request) in requests {
        let status = admin.load_model(local(request)).await.expect_err("it makes no sense");
        let info = status.get_details_error_info().expect("it says why");
        assert_eq!((status.code(), &*info.reason), (Code::InvalidArgument, "REQUEST_INVALID"));
        assert_eq!(info.metadata["field"], field);
    }
    let like = v1::LoadModelRequest { origin_of: "nobody".into(), ..load("n", "/x".into()) };
    let status = admin.load_model(local(like)).await.expect_err("there is no such model");
    assert_eq!(reason(&status), "MODEL_NOT_FOUND");
    let empty = tempfile::tempdir().expect("a directory");
    let root = empty.path().display().to_string();
    let status = admin.load_model(local(load("n", root))).await.expect_err("nothing is there");
    assert_eq!((status.code(), &*reason(&status)), (Code::NotFound, "LOAD_FAILED"));
    assert_eq!(inside.engine.models().len(), 2);
    inside.stop().await;
}

#[tokio::test]
async fn a_drain_is_asked_for_and_the_daemon_is_not_ready_at_once() {
    let inside = Inside::start(&Shape::mixed()).await;
    let answer = inside.admin().drain(local(v1::DrainRequest {})).await.expect("it drains");
    assert_eq!(answer.into_inner().deadline_ms, 7000);
    assert!(inside.drain.is_cancelled());
    assert!(!inside.engine.ready().is_ready());
    inside.stop().await;
}
