//! Large frames over a real socket, whose reader sleeps until their rest is there.

use tokio::net::{TcpListener, TcpStream};

use super::*;

const FRAME: usize = 2 << 20;
const PADDING: usize = 200;

/// Far below a daemon's patience: what takes this long waits for a wake-up that is lost.
const SOON: Duration = Duration::from_secs(10);

async fn over_tcp(patience: Duration) -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let ours = TcpStream::connect(listener.local_addr().expect("it is bound")).await;
    let (daemon, _) = listener.accept().await.expect("a connection");
    let mut connection = Connection::new(Box::new(ours.expect("it listens")), patience);
    connection.begin();
    connection.session.start(request(10));
    (connection, daemon)
}

/// The head of a reply, and a padded DATA frame with its payload.
fn reply() -> Vec<u8> {
    reply_of(FRAME)
}

fn reply_of(bytes: usize) -> Vec<u8> {
    let mut payload = vec![u8::try_from(PADDING).expect("a byte")];
    payload.extend((0..bytes - PADDING - 1).map(|at| u8::try_from(at % 251).unwrap_or(0)));
    payload.resize(bytes, 0);
    [settings(&[]), head(1), frame(frame::DATA, frame::PADDED, 1, &payload)].concat()
}

async fn say(daemon: &mut TcpStream, bytes: &[u8]) {
    daemon.write_all(bytes).await.expect("the client reads");
}

/// Reads what comes within a moment; the last mark that it waited for.
async fn wait(connection: &mut Connection, bytes: &mut Vec<u8>) -> usize {
    let mut into = vec![0; FRAME];
    let reading = async {
        loop {
            let read = poll_fn(|cx| connection.poll_read(cx, &mut into)).await.expect("bytes");
            bytes.extend_from_slice(&into[..read]);
        }
    };
    let moment = tokio::time::timeout(Duration::from_millis(300), reading).await;
    assert!(moment.is_err());
    connection.wire.mark()
}

#[tokio::test]
async fn the_rest_of_a_large_frame_is_waited_for_and_nothing_beyond() {
    let (mut connection, mut daemon) = over_tcp(PATIENCE).await;
    let reply = reply();
    let last = reply.len() - PADDING - 10;
    let mut bytes = Vec::new();
    say(&mut daemon, &reply[..100_000]).await;
    let mark = wait(&mut connection, &mut bytes).await;
    assert_eq!(mark, FRAME - PADDING - 1 - bytes.len(), "the rest");
    say(&mut daemon, &reply[100_000..last]).await;
    assert_eq!(wait(&mut connection, &mut bytes).await, 1, "of little every byte");
    let end = trailers(1, &[("grpc-status", "0")]);
    say(&mut daemon, &[&reply[last..], &end].concat()).await;
    let rest = tokio::time::timeout(SOON, read(&mut connection)).await.expect("it is woken");
    let (rest, code) = rest.expect("a reply");
    bytes.extend(rest);
    assert_eq!((bytes.len(), code), (FRAME - PADDING - 1, Code::Ok));
    assert!(bytes.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at % 251));
    // Between calls whatever comes is heard.
    assert!(connection.is_open(&mut noop()));
    assert_eq!(connection.wire.mark(), 1);
}

#[tokio::test]
async fn of_a_smaller_frame_half_of_the_rest_is_waited_for() {
    let (mut connection, mut daemon) = over_tcp(PATIENCE).await;
    let (reply, mut bytes) = (reply_of(1 << 20), Vec::new());
    let payload = (1 << 20) - PADDING - 1;
    say(&mut daemon, &reply[..100_000]).await;
    let mark = wait(&mut connection, &mut bytes).await;
    assert_eq!(mark, (payload - bytes.len()) / 2);
    say(&mut daemon, &reply[100_000..700_000]).await;
    assert_eq!(wait(&mut connection, &mut bytes).await, 256 << 10, "no less");
    say(&mut daemon, &reply[700_000..1_000_000]).await;
    assert_eq!(wait(&mut connection, &mut bytes).await, 1, "of little every byte");
    say(&mut daemon, &[&reply[1_000_000..], &trailers(1, &[("grpc-status", "0")])[..]].concat())
        .await;
    let rest = tokio::time::timeout(SOON, read(&mut connection)).await.expect("it is woken");
    bytes.extend(rest.expect("a reply").0);
    assert_eq!(bytes.len(), payload);
}

#[tokio::test]
async fn a_daemon_that_is_gone_within_a_large_frame_is_noticed_at_once() {
    let (mut connection, mut daemon) = over_tcp(PATIENCE).await;
    say(&mut daemon, &reply()[..100_000]).await;
    assert!(wait(&mut connection, &mut Vec::new()).await > 1);
    drop(daemon);
    let gone = tokio::time::timeout(SOON, read(&mut connection)).await.expect("it is woken");
    assert!(matches!(gone, Err(ConnectionError::Closed | ConnectionError::Io(_))), "{gone:?}");
}

#[tokio::test]
async fn a_large_frame_that_comes_in_slowly_is_no_silence() {
    let patience = Duration::from_millis(200);
    let (mut connection, mut daemon) = over_tcp(patience).await;
    let reply = reply();
    let write = async {
        let (slow, rest) = reply.split_at(100_000);
        for piece in slow.chunks(8_000) {
            say(&mut daemon, piece).await;
            tokio::time::sleep(patience / 2).await;
        }
        say(&mut daemon, rest).await;
        say(&mut daemon, &trailers(1, &[("grpc-status", "0")])).await;
    };
    let read = tokio::time::timeout(SOON, read(&mut connection));
    let (read, ()) = tokio::join!(read, write);
    let (bytes, code) = read.expect("it is woken").expect("it is heard");
    assert_eq!((bytes.len(), code), (FRAME - PADDING - 1, Code::Ok));
}
