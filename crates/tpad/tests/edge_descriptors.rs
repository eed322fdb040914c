//! A process that is out of descriptors: alone in its own test binary, since the limit is the process's.

use std::collections::HashSet;
use std::fs::File;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::Instant;
use tpad::config::{Config, Listen, Origin, Surroundings};
use tpad::edge::{Bound, EdgeConfig, EdgeMetrics};
use tpad::memory::{LimitSource, MemoryLimit};

#[tokio::test]
async fn at_the_descriptor_limit_the_accept_loop_waits_instead_of_spinning() {
    let surroundings = Surroundings {
        memory: MemoryLimit { bytes: 8 << 30, source: LimitSource::Host },
        socket: "/run/tpad/tpad.sock".into(),
        origin: Origin::default(),
        disk_bytes: tpad::disk_bytes,
    };
    let config = Config::for_root("/m", None, &surroundings).expect("the defaults are valid");
    let any_port: Option<SocketAddr> = "127.0.0.1:0".parse().ok();
    let listen = Listen { grpc: any_port, uds: None, http: None };
    let metrics = EdgeMetrics::default();
    let edge = Bound::bind(&listen).await.expect("bound").serve(EdgeConfig {
        routes: tonic::service::Routes::default(),
        direct: None,
        methods: HashSet::new(),
        pages: axum::Router::new(),
        limits: config.limits,
        deadlines: config.deadlines,
        metrics: metrics.clone(),
    });
    let address = edge.grpc_addr().expect("listens");

    // The client's own descriptor first; then every other one there is.
    let socket = TcpSocket::new_v4().expect("a socket");
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..limit }).expect("lowered");
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    assert!(hoard.len() > 100, "the descriptors were used up: {}", hoard.len());

    let mut client = socket.connect(address).await.expect("the kernel accepts for the listener");
    client
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .expect("written");
    let began = Instant::now();
    let deadline = began + Duration::from_secs(20);
    while metrics.accept_errors.get() < 6 {
        assert!(Instant::now() < deadline, "accept never failed: {}", metrics.accept_errors.get());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // 5, 10, 20, 40 and 80 ms lie between six failures; a loop that spins makes thousands in that time.
    assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
    assert!(metrics.accept_errors.get() <= 7, "{}", metrics.accept_errors.get());

    // With descriptors to be had the connection that waited is served.
    hoard.clear();
    let mut settings = [0u8; 9];
    let answered = tokio::time::timeout(Duration::from_secs(20), client.read_exact(&mut settings));
    answered.await.expect("in time").expect("served");
    assert_eq!(settings[3], 4, "the server's SETTINGS");
    drop(edge);
}
