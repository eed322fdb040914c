//! A real daemon in this process, on ports of its own, with its client.

use std::time::Duration;

use serde_json::Value;
use tpad::Daemon;
use tpad::config::{Config, Surroundings};
use tpad::memory::MemoryLimit;
use tpad_client::Client;
use tpad_store::OriginOptions;

use crate::http;
use crate::scene::Scene;

/// How long a model may take to load. Tests of failing models do not wait.
const LOAD_DEADLINE: Duration = Duration::from_secs(60);

/// A daemon and a client that is connected to it.
#[derive(Debug)]
pub struct Served {
    daemon: Daemon,
    client: Client,
}

impl Served {
    /// Starts a daemon with `config`, to which free ports are added, and waits
    /// until every model is served.
    ///
    /// # Panics
    /// When it does not start or a model does not load.
    pub async fn start(scene: &Scene, config: &str) -> Self {
        let served = Self::start_unready(scene, config).await;
        served.wait_until_ready().await;
        served
    }

    /// Starts a daemon and does not wait for its models.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_unready(scene: &Scene, config: &str) -> Self {
        let listen = "[listen]\ngrpc = \"127.0.0.1:0\"\nuds = \"off\"\nhttp = \"127.0.0.1:0\"\n";
        let surroundings = Surroundings {
            memory: MemoryLimit::detect(),
            socket: scene.directory().join("tpad/tpad.sock"),
            origin: OriginOptions::default(),
            disk_bytes: tpad::disk_bytes,
        };
        // Whoever tests it asks for it: looks at a store that is away are logged.
        let follow =
            if config.contains("follow_interval") { "" } else { "follow_interval = \"0s\"\n" };
        let config = Config::from_toml(&format!("{follow}{config}\n{listen}"), &surroundings)
            .expect("the test's configuration is right");
        let daemon = Daemon::start(config).await.expect("the daemon starts");
        let address = daemon.grpc_addr().expect("it listens");
        let client = Client::connect(&format!("http://{address}")).await.expect("it answers");
        Self { daemon, client }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// A client with a connection of its own.
    ///
    /// # Panics
    /// When the daemon does not answer.
    pub async fn connect(&self) -> Client {
        Client::connect(&self.address()).await.expect("the daemon answers")
    }

    /// The address for clients.
    #[must_use]
    pub fn address(&self) -> String {
        self.client.address().to_owned()
    }

    /// The daemon.
    #[must_use]
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Stops it and waits until it has.
    pub async fn stop(self) {
        drop(self.client);
        self.daemon.drain().await;
    }

    /// What the HTTP port answers at `path`, with its status code.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn http(&self, path: &str) -> (u16, String) {
        let address = self.daemon.http_addr().expect("it has an HTTP port");
        http::get(address, path).await
    }

    /// The daemon's status.
    ///
    /// # Panics
    /// When it has none.
    pub async fn status(&self) -> Value {
        let (code, body) = self.http("/status").await;
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).expect("status is JSON")
    }

    /// The value of a metric, the sum over all label sets that hold `labels`.
    ///
    /// # Panics
    /// When there is no such metric: a misspelt name is not zero.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (code, body) = self.http("/metrics").await;
        assert_eq!(code, 200, "{body}");
        http::metric(&body, name, labels)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Panics
    /// When it does not in time.
    pub async fn wait_until_ready(&self) {
        let ready = async {
            while self.http("/readyz").await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(LOAD_DEADLINE, ready).await;
        assert!(in_time.is_ok(), "models are not served: {:#}", self.status().await);
    }
}
