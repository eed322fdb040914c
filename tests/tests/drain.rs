//! Drains under load, again and again: what has begun is finished, what has not
//! is turned away, and nobody outlasts the deadline.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tpad_client::{Client, Error, FetchExperts, Kind};
use tpad_manifest::ExpertKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::compare::exact;
use tpad_tests::http;
use tpad_tests::process::Process;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};
use tpad_tests::tap::{Fault, Tap};
use tpad_tests::weed::Weed;

use crate::raw::{DATA, HEADERS, Raw, headers};

const ROUNDS: usize = 100;
const STREAMS: usize = 200;
const CONNECTIONS: usize = 8;

/// What a daemon promises beyond its deadline.
const GRACE: Duration = Duration::from_millis(250);

/// By how much a machine with no time for us may be late.
const STARVED: Duration = Duration::from_secs(10);

/// Nothing that succeeds comes near it.
const PATIENCE: Duration = Duration::from_secs(60);

const FILE: &str = "config.json";

/// A model in a store that can hold its answers back.
struct Stage {
    checkpoint: Checkpoint,
    tap: Tap,
    reference: Arc<Reference>,
    file: Arc<[u8]>,
}

impl Stage {
    async fn set(scene: &Scene) -> Self {
        let original = fixture("mixtral");
        let checkpoint = Checkpoint::import(&original, Store::S3, scene.directory(), None).await;
        let tap = Tap::start(Weed::shared().address());
        let reference = Arc::new(Reference::read(&original));
        let file = std::fs::read(original.join(FILE)).expect("the file").into();
        Self { checkpoint, tap, reference, file }
    }

    async fn daemon(&self, scene: &Scene, name: &str, deadline: &str) -> Process {
        let directory = scene.directory().join(name);
        std::fs::create_dir_all(&directory).expect("room");
        let section = self.checkpoint.section_through(&self.tap.endpoint());
        // The log then tells how each request ended.
        let config = format!(
            "{section}[levels.dram]\ncapacity = \"8MiB\"\n[drain]\ndeadline = \"{deadline}\"\n\
             [log]\nlevel = \"info,tpad=debug\"\n"
        );
        Process::serve(&directory, &config).await
    }
}

/// Two hundred streams wait for the store and others come and go when the
/// daemon is told to stop. Every stream that has begun gets all of its blocks.
/// Every other call is answered, or turned away before it began: the same call
/// then succeeds at another daemon.
#[test]
fn no_request_is_lost_over_a_hundred_drains_under_two_hundred_streams() {
    play(async |scene| {
        let stage = Arc::new(Stage::set(scene).await);
        let elsewhere = stage.daemon(scene, "other", "30s").await;
        let other = Client::connect(&elsewhere.address()).await.expect("it answers");
        let mut turned_away = 0;
        for round in 0..ROUNDS {
            let daemon = stage.daemon(scene, "draining", "30s").await;
            turned_away += drain_under_load(&stage, daemon, &other, round).await;
        }
        assert!(turned_away > 0, "no call ever came after the end: nothing was shown");
    });
}

/// One drain; how many calls were turned away.
async fn drain_under_load(
    stage: &Arc<Stage>,
    daemon: Process,
    other: &Client,
    round: usize,
) -> usize {
    // Both kinds of connection end in their own way.
    let address = match round % 2 {
        0 => format!("http://{}", daemon.grpc()),
        _ => daemon.address(),
    };
    let http = daemon.http();
    stage.tap.set(Fault::Held);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect(&address).await.expect("it answers"));
    }
    let mut begun = JoinSet::new();
    for n in 0..STREAMS {
        let (client, stage) = (clients[n % CONNECTIONS].clone(), Arc::clone(stage));
        begun.spawn(async move { blocks(&client, &stage, n).await });
    }
    arrived(http, STREAMS).await;
    let mut calls = JoinSet::new();
    for client in &clients {
        let (client, other, stage) = (client.clone(), other.clone(), Arc::clone(stage));
        calls.spawn(async move { call_until_turned_away(&client, &other, &stage).await });
    }
    let newcomer = (address, other.clone(), Arc::clone(stage));
    calls.spawn(
        async move { connect_until_turned_away(&newcomer.0, &newcomer.1, &newcomer.2).await },
    );

    let exit = tokio::task::spawn_blocking(move || daemon.terminate());
    // The pages answer until all streams are done.
    while http::get(http, "/readyz").await.0 == 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    stage.tap.set(Fault::None);
    let all = tokio::time::timeout(PATIENCE, begun.join_all()).await.expect("they end in time");
    assert_eq!(all.len(), STREAMS);
    let failed: Vec<&String> = all.iter().filter_map(|end| end.as_ref().err()).collect();
    assert!(failed.is_empty(), "round {round}: {} were lost: {:#?}", failed.len(), failed[0]);
    let calls = tokio::time::timeout(PATIENCE, calls.join_all()).await.expect("they end in time");
    let (status, log) = exit.await.expect("the thread ends");
    assert!(status.success(), "round {round}: {status}\n{log}");
    assert!(!log.contains("were cut") && !log.contains("ERROR"), "round {round}:\n{log}");
    // What the daemon began and what callers got are the same calls.
    let answered: usize = calls.iter().map(|calls| calls.answered).sum();
    assert_eq!(ended(&log, "FetchFile"), (answered, 0), "round {round}:\n{log}");
    assert_eq!(ended(&log, "FetchExperts"), (STREAMS, 0), "round {round}:\n{log}");
    calls.into_iter().map(|calls| calls.turned_away).sum()
}

/// How many requests of a method the daemon began and ended well, and how many
/// it began and ended otherwise. Those that it turned away are neither.
fn ended(log: &str, method: &str) -> (usize, usize) {
    let method = format!("method=\"tpad.v1.ExpertService/{method}\"");
    let ends = log.lines().filter(|line| line.contains("request ended") && line.contains(&method));
    let mut counts = (0, 0);
    for line in ends {
        match line {
            line if line.contains("code=\"OK\"") => counts.0 += 1,
            line if line.contains("code=\"UNAVAILABLE\"") => {}
            _ => counts.1 += 1,
        }
    }
    counts
}

/// What one caller saw.
#[derive(Default)]
struct Calls {
    answered: usize,
    turned_away: usize,
}

/// Fetches two blocks, each of them exact.
async fn blocks(client: &Client, stage: &Stage, n: usize) -> Result<(), String> {
    let numbers = [n % 16, (n * 7 + 5) % 16].map(|at| u32::try_from(at).expect("small"));
    let key = |at: u32| {
        (ExpertKey { tier: "base".parse().expect("an id"), group: 0, expert: at % 8 }, at / 8)
    };
    let request = FetchExperts {
        model: "mixtral".to_owned(),
        blocks: numbers.into_iter().map(key).collect(),
        ..FetchExperts::default()
    };
    let lost = |error: Error| format!("{:?}: {error}", error.kind());
    let mut stream = client.fetch_experts(request).await.map_err(lost)?;
    let announced = stream.start().blocks;
    let mut count = 0;
    while let Some(block) = stream.next().await {
        let block = block.map_err(lost)?;
        let tpad_manifest::BlockKey::Expert { layer, .. } = block.key else {
            return Err(format!("{} is no expert", block.key));
        };
        let source = block.source.expect("an expert has a source").expert;
        exact(&block, &stage.reference.experts[&(layer, source)]);
        count += 1;
    }
    if count == announced { Ok(()) } else { Err(format!("{count} of {announced} blocks")) }
}

/// Calls until the daemon turns a call away, and makes that call elsewhere.
async fn call_until_turned_away(client: &Client, other: &Client, stage: &Stage) -> Calls {
    let mut calls = Calls::default();
    while file(client, stage).await {
        calls.answered += 1;
    }
    assert!(file(other, stage).await, "another daemon turns it away too");
    Calls { turned_away: 1, ..calls }
}

/// The same with a connection for each call.
async fn connect_until_turned_away(address: &str, other: &Client, stage: &Stage) -> Calls {
    let mut calls = Calls::default();
    loop {
        match Client::connect(address).await {
            Ok(client) if file(&client, stage).await => calls.answered += 1,
            Ok(_) => break,
            Err(error) => {
                turned_away(&error);
                break;
            }
        }
    }
    assert!(file(other, stage).await, "another daemon turns it away too");
    Calls { turned_away: 1, ..calls }
}

/// Fetches a file; false when the daemon turns the call away.
async fn file(client: &Client, stage: &Stage) -> bool {
    match client.fetch_file("mixtral", FILE).await {
        Ok(file) => assert!(file.bytes == *stage.file, "{FILE} differs"),
        Err(error) => {
            turned_away(&error);
            return false;
        }
    }
    true
}

/// The call never began, and the error says that another try is safe.
fn turned_away(error: &Error) {
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    match error {
        Error::Connect { .. } => {}
        Error::Refused(refusal) => {
            let known = ["DRAINING", "STOPPING"].contains(&refusal.reason.as_str());
            assert!(known, "{refusal:?}");
        }
        // The transport's: a stream beyond the last one that the server names,
        // or a connection that was gone before. The daemon's log proves it.
        Error::Disconnected { .. } => {}
        other => unreachable!("{other}"),
    }
}

/// Waits until so many fetches are in progress, or over: a daemon that is fast fills the
/// kernel's buffers with the first before it reads of the last.
async fn arrived(address: std::net::SocketAddr, count: usize) {
    let arrived = async {
        loop {
            let (_, body) = http::get(address, "/metrics").await;
            let over = http::metric(&body, "tpad_requests_total", &["FetchExperts"]);
            let now = over + http::metric(&body, "tpad_requests_in_flight", &[]);
            #[expect(clippy::cast_precision_loss, reason = "two hundred are exact")]
            if now >= count as f64 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, arrived).await.expect("all requests arrive");
}

/// Two hundred streams whose clients take nothing: their windows are closed, or
/// their sockets are never read.
#[test]
fn a_hundred_drains_end_in_time_though_clients_never_read() {
    play(async |scene| {
        let stage = Stage::set(scene).await;
        for round in 0..ROUNDS {
            // Neighbours take the processor from all of us: a daemon that is
            // late is late every time.
            let mut took = Vec::new();
            while took.last().is_none_or(|took| *took > DEAF_DEADLINE + GRACE) {
                assert!(took.len() < 10, "round {round}: {took:?}");
                let this = drain_before_deaf_clients(&stage, scene).await;
                assert!(this < DEAF_DEADLINE + STARVED, "round {round}: {this:?}");
                took.push(this);
            }
        }
    });
}

const DEAF_DEADLINE: Duration = Duration::from_millis(300);

/// One drain; how long the process took to end.
async fn drain_before_deaf_clients(stage: &Stage, scene: &Scene) -> Duration {
    const EACH: usize = STREAMS / CONNECTIONS;
    let daemon = stage.daemon(scene, "deaf", "300ms").await;
    let http = daemon.http();
    let mut clients = Vec::new();
    for n in 0..CONNECTIONS {
        // Half of them let the daemon write until the socket is full.
        let window = if n % 2 == 0 { 0 } else { (1 << 31) - 1 };
        let mut raw = Raw::connect(daemon.grpc(), window).await;
        if window > 0 {
            raw.writer.widen(0, 1 << 30).await;
        }
        for stream in 0..EACH {
            let stream = u32::try_from(2 * stream + 1).expect("small");
            fetch_everything(&mut raw, stream).await;
        }
        clients.push(raw);
    }
    arrived(http, STREAMS).await;
    settled(http).await;
    let asked = Instant::now();
    let exit = tokio::task::spawn_blocking(move || (daemon.terminate(), Instant::now()));
    let ((status, log), ended) = exit.await.expect("the thread ends");
    let took = ended - asked;
    assert!(status.success(), "{status}\n{log}");
    assert!(took >= DEAF_DEADLINE, "they had until the deadline: {took:?}");
    assert!(log.contains("were cut"), "{log}");
    drop(clients);
    took
}

/// Waits until the daemon has written all that these clients let it write.
async fn settled(address: std::net::SocketAddr) {
    let mut last = -1.0;
    loop {
        let (_, body) = http::get(address, "/metrics").await;
        let now = http::metric(&body, "tpad_in_flight_bytes", &[]);
        if now > 0.0 && (now - last).abs() < 0.5 {
            break;
        }
        last = now;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Asks for all experts of the model.
async fn fetch_everything(raw: &mut Raw, stream: u32) {
    const END_HEADERS: u8 = 4;
    const END_STREAM: u8 = 1;
    let head = headers("/tpad.v1.ExpertService/FetchExperts");
    raw.writer.frame(HEADERS, END_HEADERS, stream, &head).await;
    // model = 1, tiers = 4
    let mut message = b"\x0a\x07mixtral\x22\x04base".to_vec();
    let length = u32::try_from(message.len()).expect("short");
    let mut body = vec![0];
    body.extend(length.to_be_bytes());
    body.append(&mut message);
    raw.writer.frame(DATA, END_STREAM, stream, &body).await;
}
