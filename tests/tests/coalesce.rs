//! Ten thousand requests for one cold block read it once.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tpad_client::{Client, FetchExperts, FetchedBlock};
use tpad_manifest::ExpertKey;
use tpad_tests::checkpoint::{Checkpoint, Store, fixture};
use tpad_tests::http;
use tpad_tests::process::Process;
use tpad_tests::reference::Reference;
use tpad_tests::scene::{Scene, play};
use tpad_tests::tap::{Fault, Tap};
use tpad_tests::weed::Weed;

const REQUESTS: usize = 10_000;
const CONNECTIONS: usize = 50;

/// Ten thousand requests in a debug build on two cores.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn ten_thousand_requests_for_a_cold_block_read_it_once() {
    play(async |scene| {
        let cold = Cold::start(scene).await;
        let mut requests = cold.request(REQUESTS).await;
        cold.tap.set(Fault::None);
        let mut answered = 0;
        while let Some(block) = requests.join_next().await {
            cold.check(&block.expect("the request's task ends"));
            answered += 1;
        }
        assert_eq!(answered, REQUESTS);
        cold.read_once().await;
        cold.stop();
    });
}

#[test]
fn callers_that_hang_up_do_not_restart_the_read() {
    play(async |scene| {
        let cold = Cold::start(scene).await;
        let mut stay = cold.request(REQUESTS / 2).await;
        let leave = cold.request(REQUESTS / 2).await;
        // Dropping the tasks drops their calls.
        drop(leave);
        cold.in_flight(REQUESTS / 2).await;
        cold.tap.set(Fault::None);
        while let Some(block) = stay.join_next().await {
            cold.check(&block.expect("the request's task ends"));
        }
        cold.read_once().await;
        cold.stop();
    });
}

/// When the first caller leaves, the read goes on for the second.
#[test]
fn a_read_outlives_the_caller_that_began_it() {
    play(async |scene| {
        let cold = Cold::start(scene).await;
        let first = cold.request(1).await;
        cold.in_flight(1).await;
        let mut second = cold.request(1).await;
        drop(first);
        cold.in_flight(1).await;
        cold.tap.set(Fault::None);
        let block = second.join_next().await.expect("one task").expect("it ends");
        cold.check(&block);
        cold.read_once().await;
        cold.stop();
    });
}

/// A daemon whose store holds every read of a shard.
struct Cold {
    daemon: Process,
    tap: Tap,
    clients: Vec<Client>,
    reference: Arc<Reference>,
    waiting: std::cell::Cell<usize>,
}

impl Cold {
    async fn start(scene: &Scene) -> Self {
        let original = fixture("mixtral");
        let checkpoint = Checkpoint::import(&original, Store::S3, scene.directory(), None).await;
        let tap = Tap::start(Weed::shared().address());
        // A process of its own: ten thousand callers keep this one busy.
        let config = checkpoint.section_through(&tap.endpoint());
        // All callers are one client to it, which may have half of the requests.
        let config = format!("{config}\n[limits]\nrequests = 32768\n");
        let daemon = Process::serve(scene.directory(), &config).await;
        tap.set(Fault::Held);
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Client::connect(&daemon.address()).await.expect("it answers"));
        }
        let reference = Arc::new(Reference::read(&original));
        Self { daemon, tap, clients, reference, waiting: 0.into() }
    }

    /// Asks so often for one block and waits until all requests have arrived.
    async fn request(&self, count: usize) -> JoinSet<FetchedBlock> {
        let tier = self.clients[0].describe_model("mixtral").await.expect("it is served");
        let tier = tier.summary.tiers[0].parse().expect("an id");
        let key = ExpertKey { tier, group: 0, expert: 5 };
        let mut requests = JoinSet::new();
        for n in 0..count {
            let (client, key) = (self.clients[n % CONNECTIONS].clone(), key.clone());
            requests.spawn(async move {
                let request = FetchExperts {
                    model: "mixtral".to_owned(),
                    blocks: vec![(key, 1)],
                    ..FetchExperts::default()
                };
                let mut stream = client.fetch_experts(request).await.expect("it is accepted");
                stream.next().await.expect("a block").expect("it comes")
            });
        }
        self.waiting.set(self.waiting.get() + count);
        self.in_flight(self.waiting.get()).await;
        requests
    }

    /// Waits until so many requests are in progress.
    async fn in_flight(&self, count: usize) {
        let arrived = async {
            loop {
                let now = self.metric("tpad_requests_in_flight").await;
                #[expect(clippy::cast_precision_loss, reason = "ten thousand is exact")]
                if (now - count as f64).abs() < 0.5 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, arrived).await;
        let log = self.daemon.log();
        assert!(in_time.is_ok(), "{count} requests were expected in progress:\n{log}");
        self.waiting.set(count);
    }

    fn check(&self, block: &FetchedBlock) {
        tpad_tests::compare::exact(block, &self.reference.experts[&(1, 5)]);
    }

    /// The expert's tensors lie in two shards, `w1` beside `w2` in one of them.
    async fn read_once(&self) {
        let reads = self.tap.reads();
        assert_eq!(reads.len(), 2, "{reads:#?}");
        let ranges = self.metric("tpad_origin_requests_total").await;
        assert!((ranges - 2.0).abs() < 0.5, "{ranges} ranges were fetched: {reads:#?}");
        // A machine that stands still for seconds makes the origin try again;
        // whatever else was read is one read too many.
        let retries = self.metric("tpad_origin_retries_total").await;
        #[expect(clippy::cast_precision_loss, reason = "a handful is exact")]
        let seen = reads.values().sum::<u64>() as f64;
        assert!((seen - 2.0 - retries).abs() < 0.5, "{retries} retries: {reads:#?}");
    }

    async fn metric(&self, name: &str) -> f64 {
        let (code, body) = http::get(self.daemon.http(), "/metrics").await;
        assert_eq!(code, 200, "{body}");
        http::metric(&body, name, &[])
    }

    fn stop(self) {
        drop(self.clients);
        let (status, log) = self.daemon.terminate();
        assert!(status.success(), "{status}\n{log}");
        assert!(!log.contains("ERROR"), "{log}");
    }
}
