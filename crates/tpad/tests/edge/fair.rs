//! Clients that want more than their part.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tpad::config::Limits;
use tpad::edge::RequestLabels;

use crate::raw::{DATA, HEADERS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, RST_STREAM, Raw};
use crate::server::{ENDLESS, SILENT, Server, eventually, exact, limits};

const MIB: usize = 1 << 20;

/// Connects from another address of this machine: to the edge another peer.
async fn from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).expect("a loopback address");
    socket.connect(to).await.expect("connects")
}

/// A connection that asks for one endless reply and takes all it gets.
async fn greedy(socket: TcpStream) -> Raw {
    let settings = [(INITIAL_WINDOW_SIZE, (1 << 31) - 1), (MAX_FRAME_SIZE, 1 << 20)];
    let mut raw = Raw::with(socket, &settings).await;
    raw.writer.widen(0, (1 << 31) - (1 << 17)).await;
    raw.writer.request(1, ENDLESS, &[]).await;
    raw
}

#[tokio::test]
async fn sixteen_connections_of_one_peer_share_its_turns() {
    // So much that what fits into the sockets at the start does not tell.
    const EACH: usize = 512 * MIB;
    let server = Server::start(limits()).await;
    let others = Arc::new(AtomicUsize::new(0));
    let mut readers = JoinSet::new();
    for connection in 0..17 {
        let address = if connection == 0 { 2 } else { 3 };
        let mut raw = greedy(from(address, server.address()).await).await;
        let others = Arc::clone(&others);
        readers.spawn(async move {
            let mut buffer = vec![0; MIB];
            let mut taken = 0;
            // The lone one reads until it has its part, the others with it.
            while connection != 0 || taken < EACH {
                let read = raw.reader.some(&mut buffer).await;
                taken += read;
                if connection != 0 {
                    others.fetch_add(read, Ordering::Relaxed);
                }
                tokio::task::yield_now().await;
            }
        });
    }
    readers.join_next().await.expect("the first to end").expect("it is the lone one");
    let others = others.load(Ordering::Relaxed);
    // With a turn for each connection it is 13 to 17 times its own. It is more than once: a
    // reader here waits, after each read, until the runtime has looked for what came in, and
    // meanwhile one socket is full where sixteen are not.
    assert!(others < 4 * EACH, "{} MiB against {}", others / MIB, EACH / MIB);
    assert!(others > EACH / 4, "{} MiB against {}: they were served", others / MIB, EACH / MIB);
    readers.shutdown().await;
}

#[tokio::test]
async fn a_small_reply_passes_many_bulk_streams_of_its_connection_that_are_not_read() {
    const BULK: u32 = 200;
    let server = Server::start(limits()).await;
    let Raw { mut reader, mut writer } = Raw::connect(server.address(), 65_535).await;
    writer.widen(0, 1 << 30).await;
    for n in 0..BULK {
        writer.request(2 * n + 1, ENDLESS, &[]).await;
    }
    let mut taken = 0;
    while taken < BULK * 65_535 {
        let frame = reader.find(|frame| frame.kind == DATA).await.expect("windows' worth");
        taken += u32::try_from(frame.payload.len()).expect("a frame");
    }
    // None of them can send any more, and they hold what a connection may.
    let bound = i64::try_from(limits().in_flight_bytes_per_connection).expect("small");
    eventually("they hold the bound", || server.in_flight_bytes() >= bound).await;
    let small = 2 * BULK + 1;
    writer.request(small, &exact(4096), &[]).await;
    let answered = async {
        let head = reader.find(|frame| frame.stream == small).await.expect("headers");
        let data = reader.find(|frame| frame.stream == small).await.expect("data");
        (head.kind, data.kind, data.payload.len())
    };
    assert_eq!(answered.await, (HEADERS, DATA, 4096));
}

#[tokio::test]
async fn frames_of_a_connections_streams_get_shorter_as_they_get_more() {
    const STREAMS: u32 = 64;
    let server = Server::start(limits()).await;
    let socket = TcpStream::connect(server.address()).await.expect("connects");
    let settings = [(INITIAL_WINDOW_SIZE, (1 << 31) - 1), (MAX_FRAME_SIZE, 1 << 20)];
    let Raw { mut reader, mut writer } = Raw::with(socket, &settings).await;
    writer.widen(0, (1 << 31) - (1 << 17)).await;
    writer.request(1, ENDLESS, &[]).await;
    let frame = reader.find(|frame| frame.kind == DATA).await.expect("data");
    assert_eq!(frame.payload.len(), MIB, "a frame of the largest size for one alone");
    for n in 1..STREAMS {
        writer.request(2 * n + 1, ENDLESS, &[]).await;
    }
    eventually("all are served", || server.replies() == 64).await;
    // What was handed over before they were so many goes first.
    let mut passed = 0;
    while passed < 128 * MIB {
        passed += reader.find(|frame| frame.kind == DATA).await.expect("data").payload.len();
    }
    for _ in 0..64 {
        let frame = reader.find(|frame| frame.kind == DATA).await.expect("data");
        assert!(frame.payload.len() <= 16 * MIB / STREAMS as usize, "{}", frame.payload.len());
    }
}

#[tokio::test]
async fn a_peer_with_its_share_of_requests_is_told_to_wait_and_another_is_served() {
    let server = Server::start(Limits { requests: 8, ..limits() }).await;
    let address = server.address();
    let mut greedy = Raw::over(from(2, address).await, 65_535).await;
    // Five, then three are left for others.
    for n in 0..5 {
        greedy.writer.request(2 * n + 1, SILENT, &[]).await;
    }
    eventually("they are in", || server.replies() == 5).await;
    greedy.writer.request(11, SILENT, &[]).await;
    let end = greedy.reader.find(|frame| frame.stream == 11).await.expect("an answer");
    assert_eq!((end.kind, end.flags & 1), (HEADERS, 1), "refused before anything else");
    let refused = RequestLabels { method: "unknown".to_owned(), code: "RESOURCE_EXHAUSTED" };
    assert_eq!(server.metrics.requests.get_or_create(&refused).get(), 1);

    let mut modest = Raw::over(from(3, address).await, 65_535).await;
    for n in 0..2 {
        modest.writer.request(2 * n + 1, &exact(10), &[]).await;
        let data = modest.reader.find(|frame| frame.kind == DATA).await.expect("a reply");
        assert_eq!(data.payload.len(), 10);
    }
    assert_eq!(server.metrics.requests.get_or_create(&refused).get(), 1);
}

#[tokio::test]
async fn of_fifty_clients_the_ten_that_never_read_hold_little_and_are_cut() {
    const CLIENTS: u8 = 50;
    const REPLY: usize = 8 * MIB;
    const LIMIT: u64 = 64 << 20;
    let limits =
        Limits { in_flight_bytes: LIMIT, progress_deadline: Duration::from_secs(2), ..limits() };
    let server = Server::start(limits).await;
    let (mut bad, mut good) = (Vec::new(), JoinSet::new());
    for client in 0..CLIENTS {
        let socket = from(10 + client, server.address()).await;
        if client % 5 == 0 {
            let mut raw = greedy(socket).await;
            for n in 1..8 {
                raw.writer.request(2 * n + 1, ENDLESS, &[]).await;
            }
            bad.push(raw);
        } else {
            good.spawn(async move {
                let settings = [(INITIAL_WINDOW_SIZE, (1 << 31) - 1), (MAX_FRAME_SIZE, 1 << 20)];
                let Raw { mut reader, mut writer } = Raw::with(socket, &settings).await;
                writer.widen(0, 1 << 30).await;
                let mut taken = 0;
                for n in 0..4 {
                    writer.request(2 * n + 1, &exact(REPLY), &[]).await;
                    loop {
                        let frame = reader.frame().await.expect("the connection stays");
                        assert_ne!(frame.kind, RST_STREAM);
                        if frame.kind == DATA {
                            assert!(frame.payload.iter().all(|byte| *byte == 7));
                            taken += frame.payload.len();
                        }
                        if frame.stream == 2 * n + 1 && frame.flags & 1 == 1 {
                            break;
                        }
                    }
                }
                taken
            });
        }
    }
    let mut most = 0;
    while let Some(taken) = good.join_next().await {
        most = most.max(server.in_flight_bytes());
        assert_eq!(taken.expect("a good client"), 4 * REPLY);
    }
    let bound = i64::try_from(LIMIT).expect("small") + i64::from(CLIENTS) * (64 << 10);
    assert!(most <= bound, "{most} of {bound}");
    eventually("who never reads is cut", || server.in_flight_bytes() == 0).await;
    assert_eq!(server.replies(), 0);
    drop(bad);
}
