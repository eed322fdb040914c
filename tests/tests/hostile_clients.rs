//! Clients that try to hurt the process: its memory stays bounded, honest
//! clients are served meanwhile, and nothing of them stays behind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::Code;
use tpad_client::{Client, FetchExperts, RetryPolicy};
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::compare::{collect, exact};
use tpad_tests::http;
use tpad_tests::process::Process;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};

use crate::raw::{DATA, ENHANCE_YOUR_CALM, GOAWAY, HEADERS, RST_STREAM, Raw, headers};

const MIB: u64 = 1 << 20;

/// What the daemon's configuration lets blocks and unread replies take.
const CAPACITY_BYTES: u64 = 8 * MIB;
const IN_FLIGHT_BYTES: u64 = 32 * MIB;

/// What an attack may add to the daemon's peak: the bound on unread replies and
/// as much again for what lies around them, such as HTTP/2's own buffers, and
/// the allocator's.
const BOUND_BYTES: u64 = 2 * IN_FLIGHT_BYTES + 64 * MIB;

/// The slowest honest call, on a machine that runs attackers, daemon and callers.
const SERVED: Duration = Duration::from_secs(10);

/// Until all that attackers held is free: the deadlines below, and their end.
const REAPED: Duration = Duration::from_secs(30);

const LIMITS: &str = "[limits]\nin_flight_bytes = \"32MiB\"\npreface_deadline = \"2s\"\n\
    progress_deadline = \"3s\"\nkeepalive_interval = \"3s\"\nkeepalive_timeout = \"3s\"\n";

const FETCH: &str = "/tpad.v1.ExpertService/FetchExperts";
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A daemon under attack, and an honest client that never stops.
struct Siege {
    daemon: Process,
    peak_before: u64,
    sockets_before: usize,
    stop: watch::Sender<bool>,
    honest: JoinHandle<(usize, Duration)>,
}

impl Siege {
    async fn begin(scene: &Scene) -> Self {
        let original = fixture("mixtral");
        let directory = scene.directory();
        let checkpoint = Checkpoint::import(&original, Store::Directory, directory, None).await;
        let config = format!(
            "{}[levels.dram]\ncapacity = \"{CAPACITY_BYTES}\"\n{LIMITS}",
            checkpoint.section()
        );
        let daemon = Process::serve(directory, &config).await;
        let mut options = tpad_client::ClientOptions::default();
        // As the daemon's documentation asks of clients.
        options.retry = RetryPolicy::up_to(5, Duration::from_secs(2));
        let address = daemon.address().parse().expect("an address");
        let client = Client::connect_with(&address, options).await.expect("it answers");
        let reference = Arc::new(Reference::read(&original));
        // All is in memory, and the buffers of one whole reply are paid for.
        fetch_whole(&client, &reference).await;
        let (stop, stopped) = watch::channel(false);
        let honest = tokio::spawn(async move {
            let (mut calls, mut slowest) = (0, Duration::ZERO);
            while !*stopped.borrow() {
                let began = Instant::now();
                fetch_whole(&client, &reference).await;
                slowest = slowest.max(began.elapsed());
                calls += 1;
            }
            (calls, slowest)
        });
        let (peak_before, sockets_before) = (daemon.peak_bytes(), daemon.sockets());
        Self { daemon, peak_before, sockets_before, stop, honest }
    }

    fn address(&self) -> SocketAddr {
        self.daemon.grpc()
    }

    /// Waits until a metric has reached a value.
    async fn reaches(&self, name: &str, labels: &[&str], wanted: impl Fn(f64) -> bool) {
        let mut last = 0.0;
        let reached = async {
            loop {
                let (_, body) = http::get(self.daemon.http(), "/metrics").await;
                // A family without samples is not written yet.
                let family = name.strip_suffix("_total").unwrap_or(name);
                if body.contains(&format!("# TYPE {family} ")) {
                    last = http::metric(&body, name, labels);
                }
                if wanted(last) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(REAPED, reached).await;
        assert!(in_time.is_ok(), "{name} {labels:?} is {last}");
    }

    /// The attackers are gone, or the daemon has let go of them: nothing is left.
    async fn end(self) {
        self.stop.send_replace(true);
        let (calls, slowest) = (&mut { self.honest }).await.expect("the honest client ends well");
        assert!(calls >= 3, "{calls} honest calls were answered");
        assert!(slowest <= SERVED, "an honest call took {slowest:?}");
        let peak = self.daemon.peak_bytes();
        let grown = peak.saturating_sub(self.peak_before);
        assert!(
            grown <= BOUND_BYTES,
            "{} MiB more than {} MiB",
            grown / MIB,
            self.peak_before / MIB
        );
        let reaped = async {
            loop {
                let held = self.daemon.metric("tpad_in_flight_bytes", &[]).await;
                let requests = self.daemon.metric("tpad_requests_in_flight", &[]).await;
                let sockets = self.daemon.sockets();
                // One is this scrape's own.
                if held < 0.5 && requests < 0.5 && sockets <= self.sockets_before + 1 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(REAPED, reaped).await;
        let before = self.sockets_before;
        assert!(in_time.is_ok(), "{} sockets, {before} before", self.daemon.sockets());
        let (status, log) = self.daemon.terminate();
        assert!(status.success(), "{status}\n{log}");
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    }
}

async fn fetch_whole(client: &Client, reference: &Reference) {
    let request = FetchExperts {
        model: "mixtral".to_owned(),
        tiers: vec!["base".to_owned()],
        ..FetchExperts::default()
    };
    let blocks = collect(client.fetch_experts(request).await).await;
    for (key, block) in &blocks {
        let tpad_manifest::BlockKey::Expert { layer, .. } = key else {
            unreachable!("{key} is no expert")
        };
        let source = block.source.expect("an expert has a source").expert;
        exact(block, &reference.experts[&(*layer, source)]);
    }
    assert_eq!(blocks.len(), 16);
}

#[test]
fn silent_sockets_are_reaped_while_honest_clients_are_served() {
    const SILENT: usize = 600;
    play(async |scene| {
        let siege = Siege::begin(scene).await;
        let mut sockets = Vec::new();
        for n in 0..SILENT {
            let mut socket = TcpStream::connect(siege.address()).await.expect("it is accepted");
            // Some begin as a client does and say no more.
            if n % 3 == 0 {
                socket.write_all(b"PRI * HTTP/2.0\r\n").await.expect("written");
            }
            sockets.push(socket);
        }
        for _ in 0..32 {
            let mut socket = TcpStream::connect(siege.daemon.http()).await.expect("accepted");
            socket.write_all(b"GET /status HTTP/1.1\r\n").await.expect("written");
            sockets.push(socket);
        }
        let no_preface = |value: f64| value >= 600.0;
        siege.reaches("tpad_connection_outcomes_total", &["no_preface"], no_preface).await;
        siege.end().await;
        drop(sockets);
    });
}

#[test]
fn streams_that_are_never_read_hold_no_more_than_the_bound() {
    const CLIENTS: usize = 6;
    const STREAMS: u32 = 200;
    play(async |scene| {
        let siege = Siege::begin(scene).await;
        let mut clients = Vec::new();
        for n in 0..CLIENTS {
            // Half never open a window, half never read their socket.
            let window = if n % 2 == 0 { 0 } else { (1 << 31) - 1 };
            let mut raw = Raw::connect(siege.address(), window).await;
            if window > 0 {
                raw.writer.widen(0, 1 << 30).await;
            }
            for stream in 0..STREAMS {
                ask(&mut raw, 2 * stream + 1, &whole_tier()).await;
            }
            clients.push(raw);
        }
        // They are cut one by one, with their connection, or refused before: how
        // many each depends on who was first.
        let cut = |value: f64| value >= 20.0;
        siege.reaches("tpad_streams_cut_total", &[], cut).await;
        siege.end().await;
        drop(clients);
    });
}

#[test]
fn reset_floods_end_with_their_connections() {
    const ATTACKS: u64 = 40;
    const RESETS: u32 = 2000;
    const CANCEL: [u8; 4] = 8u32.to_be_bytes();
    play(async |scene| {
        let siege = Siege::begin(scene).await;
        let mut calmed = 0;
        for _ in 0..ATTACKS {
            let Raw { mut reader, mut writer } = Raw::connect(siege.address(), 65_535).await;
            let flood = async {
                for stream in 0..RESETS {
                    let (head, stream) = (headers(FETCH), 2 * stream + 1);
                    let opened = writer.try_frame(HEADERS, END_HEADERS, stream, &head).await;
                    if !opened || !writer.try_frame(RST_STREAM, 0, stream, &CANCEL).await {
                        break;
                    }
                }
            };
            let told = async {
                let told = reader.find(|frame| frame.kind == GOAWAY).await;
                told.map(|frame| frame.error_code())
            };
            let ((), told) = tokio::join!(flood, told);
            calmed += u64::from(told == Some(ENHANCE_YOUR_CALM));
        }
        // A connection may break before the words are read.
        assert!(calmed >= ATTACKS / 2, "{calmed} of {ATTACKS} floods were told to calm down");
        siege.end().await;
    });
}

#[test]
fn giant_requests_and_ten_million_keys_are_refused_at_once() {
    play(async |scene| {
        let siege = Siege::begin(scene).await;
        let mut uploads = Vec::new();
        for _ in 0..8 {
            // Ten million keys, as they are: some 100 MB.
            uploads.push(tokio::spawn(upload(siege.address(), keys(10_000_000), None)));
            // A message that claims four gigabytes and goes on for ever.
            let endless = std::iter::repeat(Bytes::from(vec![0; 1 << 20]));
            uploads.push(tokio::spawn(upload(siege.address(), endless, Some(u32::MAX))));
        }
        for upload in uploads {
            let code = upload.await.expect("it ends");
            assert_eq!(code, Code::ResourceExhausted, "too large");
        }
        // Ten million again, in a few kilobytes: every key at every layer.
        let mut product: Vec<u8> = Vec::new();
        field(&mut product, 1, b"mixtral");
        for _ in 0..3200 {
            field(&mut product, 2, &key(1));
        }
        // layers = 5, packed
        field(&mut product, 5, &[0, 1].repeat(1600));
        let product = std::iter::once(Bytes::from(product));
        let began = Instant::now();
        let code = upload(siege.address(), product, None).await;
        assert!([Code::Ok, Code::InvalidArgument].contains(&code), "{code:?}");
        assert!(began.elapsed() <= SERVED, "{:?}", began.elapsed());
        siege.end().await;
    });
}

/// A field of bytes; lengths are below 16384.
fn field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("short");
    assert!(length < 1 << 14, "two bytes of length");
    message.push(number << 3 | 2);
    if length >= 0x80 {
        message.push(u8::try_from(length & 0x7f).expect("seven bits") | 0x80);
        message.push(u8::try_from(length >> 7).expect("seven bits"));
    } else {
        message.push(u8::try_from(length).expect("seven bits"));
    }
    message.extend(bytes);
}

/// An `ExpertKey` of the tier.
fn key(expert: u8) -> Vec<u8> {
    let mut key = Vec::new();
    field(&mut key, 1, b"base");
    key.extend([0x18, expert]);
    key
}

/// The body of a request for so many keys, in pieces.
fn keys(count: usize) -> impl Iterator<Item = Bytes> + Send + 'static {
    const PIECE: usize = 50_000;
    let mut piece = Vec::new();
    (0..PIECE).for_each(|_| field(&mut piece, 2, &key(3)));
    let mut model = Vec::new();
    field(&mut model, 1, b"mixtral");
    let piece = Bytes::from(piece);
    std::iter::once(Bytes::from(model)).chain(std::iter::repeat_n(piece, count / PIECE))
}

fn whole_tier() -> Vec<u8> {
    let mut message = Vec::new();
    field(&mut message, 1, b"mixtral");
    field(&mut message, 4, b"base");
    message
}

/// Opens a stream with one message.
async fn ask(raw: &mut Raw, stream: u32, message: &[u8]) {
    raw.writer.frame(HEADERS, END_HEADERS, stream, &headers(FETCH)).await;
    let length = u32::try_from(message.len()).expect("short");
    let body = [&[0], &length.to_be_bytes()[..], message].concat();
    raw.writer.frame(DATA, END_STREAM, stream, &body).await;
}

/// Sends a message that claims to be so long, as long as the daemon takes it;
/// answers with the status. Replies are read and dropped.
async fn upload(
    address: SocketAddr,
    pieces: impl Iterator<Item = Bytes> + Send,
    claim: Option<u32>,
) -> Code {
    let pieces: Vec<Bytes> = pieces.take(4096).collect();
    let length: usize = pieces.iter().map(Bytes::len).sum();
    let claim = claim.unwrap_or_else(|| u32::try_from(length).expect("below 4 GiB"));
    let socket = TcpStream::connect(address).await.expect("it is accepted");
    let (client, connection) = h2::client::handshake(socket).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.expect("ready");
    let request = ::http::Request::post(format!("http://test{FETCH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request");
    let (response, mut body) = client.send_request(request, false).expect("it is sent");
    let prefix = Bytes::from([&[0], &claim.to_be_bytes()[..]].concat());
    let sending = async move {
        for mut piece in std::iter::once(prefix).chain(pieces) {
            while !piece.is_empty() {
                body.reserve_capacity(piece.len());
                let granted = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
                let Some(Ok(granted)) = granted else { return };
                let now = piece.split_to(granted.min(piece.len()));
                if body.send_data(now, false).is_err() {
                    return;
                }
            }
        }
        // Refused if the stream has ended, which is what it should.
        let _ = body.send_data(Bytes::new(), true);
        // Dropped, it would reset the stream.
        std::future::pending::<()>().await;
    };
    let answer = async {
        let (parts, mut body) = response.await.expect("an answer").into_parts();
        while let Some(data) = body.data().await {
            let length = data.expect("data").len();
            body.flow_control().release_capacity(length).expect("released");
        }
        let trailers = body.trailers().await.expect("an end").unwrap_or(parts.headers);
        tonic::Status::from_header_map(&trailers).expect("a status").code()
    };
    let code = tokio::select! {
        code = answer => code,
        () = async { sending.await; std::future::pending::<()>().await } => unreachable!("never"),
        () = tokio::time::sleep(REAPED) => unreachable!("no answer"),
    };
    connection.abort();
    code
}
