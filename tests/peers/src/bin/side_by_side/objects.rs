//! A checkpoint's bytes from an S3 server.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};

use crate::children::on;
use crate::cold::{CONCURRENCY, Once, bench_cold, prefetch, timed};
use crate::contest::{Contender, Run, client, contest};
use crate::figures::{Row, Sample};
use crate::place::{self, Place};
use crate::servers::{self, Server, Tiers, Weed};
use crate::values::COLD;
use crate::{Plan, say};

/// Whose figures the ratios divide by.
pub(crate) const LIMIT: &str = "HTTP GET, no more";

const PREFIX: &str = "cold";

const PEERS: [&str; 7] = [
    LIMIT,
    "tpad, from the store to host memory",
    "tpad, from the store to a worker",
    "object_store, ranges of 16 MiB",
    "Run:ai model streamer, S3",
    "s5cmd, to files in memory",
    "boto3, download_fileobj",
];

/// The whole part.
pub(crate) fn run(place: &Place, plan: &Plan) -> Result<Vec<Row>> {
    say("storing a checkpoint in an S3 server");
    let scene = Scene::new(place);
    let tpad = scene.as_ref().map_err(|error| anyhow!("{error:#}")).and_then(Scene::tpad);
    let runs = match &scene {
        Ok(scene) => [
            scene.http(),
            prefetch(place, &tpad, &scene.weed.server.pids()),
            scene.worker(&tpad),
            scene.object_store(),
            scene.loader("runai-s3"),
            scene.s5cmd(),
            scene.loader("boto3"),
        ],
        Err(error) => PEERS.map(|_| Err(anyhow!("{error:#}"))),
    };
    let contenders: Vec<_> = PEERS
        .into_iter()
        .zip(runs)
        .filter(|(name, _)| plan.wants(name, LIMIT))
        .map(|(name, run)| Contender { name, run, at: |_: &Once| true })
        .collect();
    contest(place, &contenders, &[Once("768 MiB from S3")], plan.rounds, |_| Ok(()))
}

/// The store with the checkpoint in it.
struct Scene<'a> {
    place: &'a Place,
    weed: Weed,
    /// The shards as they were uploaded.
    shards: Vec<PathBuf>,
    /// Bytes and name of each, as `peer-load` reads them.
    objects: PathBuf,
    /// Bytes and signed path of each.
    signed: PathBuf,
}

impl<'a> Scene<'a> {
    fn new(place: &'a Place) -> Result<Self> {
        let weed = servers::weed(place, "weed-cold", &place.all)?;
        let local = place.disk.join("to-upload");
        COLD.synthesize(place, &local)?;
        let shards = place::files(&local, "safetensors")?;
        weed.upload(place, &local, PREFIX)?;
        let mut lines = Vec::new();
        for shard in &shards {
            let name = shard.file_name().context("a shard has a name")?.display().to_string();
            lines.push(format!("{} {PREFIX}/{name}", shard.metadata()?.len()));
        }
        let objects = place.memory.join("cold.objects");
        std::fs::write(&objects, lines.join("\n"))?;
        let mut sign = weed.load(place, &place.all, "sign")?;
        let paths = place.prepare(sign.arg("--objects").arg(&objects))?;
        let signed = place.memory.join("cold.signed");
        std::fs::write(&signed, paths)?;
        Ok(Self { place, weed, shards, objects, signed })
    }

    /// A daemon without a disk level, whose model's root is in the store.
    fn tpad(&self) -> Result<Server> {
        let root = self.weed.root(PREFIX);
        let mut import = on(&self.place.all, self.place.program("tpactl")?);
        self.weed.environment(&mut import);
        import.args(["import", &root, "--model", &COLD.model()]);
        self.place.prepare(&mut import).context("importing from the store")?;
        let tiers = Tiers {
            models: vec![(COLD, root)],
            dram: "2GiB",
            origin: self.weed.origin(),
            ..Tiers::default()
        };
        servers::daemon(self.place, "tpad-s3", &tiers)
    }

    fn worker<'s>(&'s self, tpad: &'s Result<Server>) -> Result<Run<'s, Once>> {
        let server = tpad.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        Ok(Box::new(move |_| {
            let before = tpad_peers::cpu::trees_seconds(&self.weed.server.pids())?;
            let command = bench_cold(self.place, server, false);
            let mut sample = client(self.place, command, Sample::of_tpactl, "client")?;
            let store = tpad_peers::cpu::trees_seconds(&self.weed.server.pids())? - before;
            // tpactl counts the daemon and itself; the store is a server as well.
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            let gb = (COLD.keys * COLD.bytes()) as f64 / 1e9;
            sample.server_cpu += store / gb;
            Ok(sample)
        }))
    }

    fn load(&self, verb: &str, objects: &PathBuf, concurrency: &str) -> Result<Command> {
        let mut command = self.weed.load(self.place, &self.place.all, verb)?;
        command.arg("--objects").arg(objects).args(["--once", "--concurrency", concurrency]);
        self.measure(&mut command);
        Ok(command)
    }

    fn measure(&self, command: &mut Command) {
        command.arg("--keys").arg(self.shards.len().to_string());
        for pid in self.weed.server.pids() {
            command.arg("--server").arg(pid.to_string());
        }
    }

    /// A shard at a time, 8 ranges of it in flight.
    fn object_store(&self) -> Result<Run<'_, Once>> {
        Ok(Box::new(|_| {
            let command = self.load("s3", &self.objects, "1");
            client(self.place, command, Sample::of_outcome, "client")
        }))
    }

    /// All shards at once, each by one request into one buffer.
    fn http(&self) -> Result<Run<'_, Once>> {
        Ok(Box::new(|_| {
            let mut command = on(&self.place.all, self.place.program("peer-load")?);
            command.arg("http").arg("--addr").arg(self.weed.server.address.to_string());
            command.arg("--objects").arg(&self.signed).args(["--once"]);
            command.args(["--concurrency", CONCURRENCY]);
            self.measure(&mut command);
            client(self.place, Ok(command), Sample::of_outcome, "client")
        }))
    }

    fn loader(&self, name: &'static str) -> Result<Run<'_, Once>> {
        self.place.tool("python")?;
        Ok(Box::new(move |_| {
            let mut command = on(&self.place.all, self.place.tool("python")?);
            self.weed.environment(&mut command);
            let pids: Vec<String> = self.weed.server.pids().iter().map(u32::to_string).collect();
            command.env("PEERS_SERVERS", pids.join(" "));
            command.arg(self.place.script("cold.py")).arg(name);
            let text = std::fs::read_to_string(&self.objects)?;
            let keys = text.lines().filter_map(|line| line.split_once(' ')).map(|(_, key)| key);
            if name == "boto3" {
                command.arg(self.weed.bucket()).args(keys);
            } else {
                command.args(keys.map(|key| self.weed.root(key)));
            }
            client(self.place, Ok(command), Sample::of_outcome, "client")
        }))
    }

    fn s5cmd(&self) -> Result<Run<'_, Once>> {
        let program = self.place.tool("s5cmd")?;
        Ok(Box::new(move |_| {
            let into = self.place.memory.join("s5cmd");
            let mut command = on(&self.place.all, &program);
            self.weed.environment(&mut command);
            command.arg("cp").arg(self.weed.root(&format!("{PREFIX}/*.safetensors")));
            command.arg(format!("{}/", into.display()));
            let (_, sample) = timed(self.place, &mut command, &self.weed.server.pids())?;
            let mut bytes = 0;
            for file in place::files(&into, "safetensors")? {
                bytes += file.metadata()?.len();
            }
            std::fs::remove_dir_all(&into)?;
            Ok(sample(bytes))
        }))
    }
}
