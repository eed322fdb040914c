//! What a connection says, how much of it, and when it serves no call any more.

use tokio::time::Instant;

use super::super::super::session::WINDOW_BYTES;
use super::*;

#[tokio::test]
async fn a_large_request_waits_for_the_daemons_windows() {
    let (mut connection, mut daemon) = connected(request(100_000));
    let daemon = async {
        greet(&mut daemon).await;
        let data = |frames: &[FrameHead]| -> usize {
            frames.iter().filter(|head| head.kind == frame::DATA).map(|head| head.bytes).sum()
        };
        // 64 KiB less one, in frames of 16 KiB: HTTP/2's defaults.
        let first = written(&mut daemon, |head| head.bytes == 65_535 % 16_384).await;
        assert_eq!(data(&first), 65_535);
        assert!(first.iter().all(|head| head.bytes <= 16_384 && !head.has(frame::END_STREAM)));
        // The streams' windows alone do not help.
        daemon.write_all(&settings(&[(frame::INITIAL_WINDOW_SIZE, 1 << 20)])).await.expect("room");
        daemon.write_all(&frame(frame::PING, 0, 0, &[0; 8])).await.expect("room");
        let between = written(&mut daemon, |head| head.kind == frame::PING).await;
        assert_eq!(data(&between), 0);
        let more = 1_000_000u32.to_be_bytes();
        daemon.write_all(&frame(frame::WINDOW_UPDATE, 0, 0, &more)).await.expect("room");
        let last = written(&mut daemon, |head| head.has(frame::END_STREAM)).await;
        assert_eq!(data(&last), 100_000 - 65_535);
        daemon.write_all(&trailers(1, &[(":status", "200")])).await.expect("room");
        daemon
    };
    let (read, _daemon) = tokio::join!(read(&mut connection), daemon);
    assert!(read.expect("a reply").0.is_empty());
}

#[tokio::test]
async fn windows_are_raised_as_bytes_are_taken_and_never_overrun() {
    let (mut connection, mut daemon) = connected(request(1));
    let piece = frame(frame::DATA, 0, 1, &[5; 1 << 20]);
    let count = WINDOW_BYTES / (1 << 20) * 2;
    let daemon = async {
        greet(&mut daemon).await;
        daemon.write_all(&[settings(&[]), head(1)].concat()).await.expect("room");
        let (mut reading, mut writing) = tokio::io::split(daemon);
        let write = async {
            for _ in 0..count {
                writing.write_all(&piece).await.expect("room");
            }
            writing.write_all(&trailers(1, &[("grpc-status", "0")])).await.expect("room");
        };
        let read = async {
            let mut all = vec![0; 4096];
            let mut updates = Vec::new();
            while updates.len() < 2 * (HEAD_BYTES + 4) + 9 + (HEAD_BYTES + 1) {
                let count = reading.read(&mut all).await.expect("alive");
                updates.extend_from_slice(&all[..count]);
            }
            updates
        };
        tokio::join!(write, read).1
    };
    let (read, updates) = tokio::join!(read(&mut connection), daemon);
    assert_eq!(read.expect("all of it").0.len(), (count as usize) << 20);
    let raised = frame(frame::WINDOW_UPDATE, 0, 1, &(WINDOW_BYTES / 2).to_be_bytes());
    assert!(updates.windows(raised.len()).any(|window| window == raised), "{updates:?}");
}

#[tokio::test]
async fn a_connection_serves_one_call_after_the_other_until_the_daemon_leaves() {
    let (mut connection, mut daemon) = connected(request(1));
    let reply = |stream| {
        let end = trailers(stream, &[("grpc-status", "0")]);
        [head(stream), frame(frame::DATA, 0, stream, b"abc"), end].concat()
    };
    daemon.write_all(&[settings(&[]), reply(1)].concat()).await.expect("room");
    assert_eq!(read(&mut connection).await.expect("a reply"), (b"abc".to_vec(), Code::Ok));
    assert!(connection.is_open(&mut noop()));
    connection.begin();
    connection.session.start(request(1));
    // It takes this call and no other.
    let leaving = [3u32.to_be_bytes(), [0; 4]].concat();
    let bytes = [frame(frame::GOAWAY, 0, 0, &leaving), reply(3)].concat();
    daemon.write_all(&bytes).await.expect("room");
    assert_eq!(read(&mut connection).await.expect("a reply"), (b"abc".to_vec(), Code::Ok));
    assert!(!connection.is_open(&mut noop()));

    let (mut connection, mut daemon) = connected(request(1));
    let bytes = [settings(&[]), frame(frame::GOAWAY, 0, 0, &[0; 8])].concat();
    daemon.write_all(&bytes).await.expect("room");
    let turned_away = read(&mut connection).await;
    assert!(matches!(turned_away, Err(ConnectionError::NotTaken)), "{turned_away:?}");

    let (mut connection, mut daemon) = connected(request(1));
    let refused = frame::REFUSED_STREAM.to_be_bytes();
    let bytes = [settings(&[]), frame(frame::RST_STREAM, 0, 1, &refused)].concat();
    daemon.write_all(&bytes).await.expect("room");
    let refused = read(&mut connection).await;
    assert!(matches!(refused, Err(ConnectionError::NotTaken)), "{refused:?}");

    let (mut connection, daemon) = connected(request(1));
    drop(daemon);
    assert!(matches!(
        read(&mut connection).await,
        Err(ConnectionError::Io(_) | ConnectionError::Closed)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_is_silent_is_asked_and_then_given_up() {
    let (mut connection, mut daemon) = connected(request(1));
    let began = Instant::now();
    let daemon = async {
        greet(&mut daemon).await;
        daemon.write_all(&settings(&[])).await.expect("room");
        written(&mut daemon, |head| head.kind == frame::PING).await;
        // It answers once.
        daemon.write_all(&frame(frame::PING, frame::ACK, 0, b"tpadping")).await.expect("room");
        written(&mut daemon, |head| head.kind == frame::PING).await;
        daemon
    };
    let (read, _daemon) = tokio::join!(read(&mut connection), daemon);
    assert!(matches!(read, Err(ConnectionError::Silent(_))), "{read:?}");
    assert_eq!(began.elapsed().as_secs(), 60);
}

#[tokio::test]
async fn a_daemon_that_asks_and_never_reads_the_answers_is_left() {
    let (ours, mut daemon) = tokio::io::duplex(64);
    let mut connection = Connection::new(Box::new(Layered::over(ours)), PATIENCE);
    connection.session.start(request(1));
    let ask = async move {
        let mut sent = daemon.write_all(&settings(&[])).await;
        while sent.is_ok() {
            sent = daemon.write_all(&frame(frame::PING, 0, 0, &[0; 8])).await;
        }
    };
    let read = async {
        let result = read(&mut connection).await;
        drop(connection);
        result
    };
    let (result, ()) = tokio::join!(read, ask);
    let Err(ConnectionError::Broken(fault)) = result else { panic!("{result:?}") };
    assert_eq!(fault.code, frame::ENHANCE_YOUR_CALM);
}
