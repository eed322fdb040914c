//! Values in memory, over TCP on loopback.

use std::fmt;
use std::process::Command;

use anyhow::{Result, anyhow};

use crate::children::on;
use crate::contest::{Contender, Reader, Run, client, contest};
use crate::figures::{Row, Sample};
use crate::place::Place;
use crate::servers::{self, Server, Tiers, Weed};
use crate::values::{self, ABOVE, SIZES, Size};
use crate::{Plan, say};

/// Whose figures the ratios divide by.
pub(crate) const LIMIT: &str = "raw TCP loop";

/// tpad as workers read it.
pub(crate) const OURS: &str = "tpad";

/// Seconds before and of a run: the machine's clocks tick in hundredths, and a run of
/// half a second is known to a fiftieth or so of its processor time.
const WARMUP: &str = "0.1";
const SECONDS: &str = "0.5";

/// All sizes that go over the wire here.
pub(crate) const WIRE: [Size; 4] = [SIZES[0], ABOVE, SIZES[1], SIZES[2]];

/// The comparison proper.
const PEERS: [&str; 12] = [
    LIMIT,
    "raw TCP loop, Reno",
    OURS,
    "tpad, ordinary receiver",
    "nginx, sendfile",
    "memcached get",
    "Redis GET",
    "Arrow Flight (pyarrow)",
    "S3 GET, SeaweedFS",
    "generated tonic, both sides",
    "grpcio, both sides",
    "Mooncake Store",
];

/// Beside it, at the middle size alone, for the sake of time.
const BESIDE: [&str; 5] = [
    "tpad, client checks digests",
    "tpad, read by grpcio",
    "generated tonic, read by grpcio",
    "tpad, read by grpcio as it is",
    "generated tonic, read by grpcio as it is",
];

/// Requests at a time, for values of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) size: Size,
    pub(crate) concurrency: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {}", self.size.name, self.concurrency)
    }
}

fn everywhere(_: &Case) -> bool {
    true
}

fn middle(case: &Case) -> bool {
    case.size == SIZES[1]
}

/// The whole part.
pub(crate) fn run(place: &Place, plan: &Plan) -> Result<Vec<Row>> {
    say("making values and starting servers");
    let field = Field::new(place, plan)?;
    let all = field.contenders();
    let contenders: Vec<_> =
        all.into_iter().filter(|contender| plan.wants(contender.name, LIMIT)).collect();
    for contender in &contenders {
        if let Err(error) = &contender.run {
            say(&format!("{}: {}", contender.name, place.told(error)));
        }
    }
    let concurrencies: &[usize] = if plan.quick { &[4] } else { &[1, 4, 16] };
    let sizes = if plan.quick { &SIZES[1..2] } else { &WIRE[..] };
    let at = |size: Size| concurrencies.iter().map(move |&concurrency| Case { size, concurrency });
    let cases: Vec<Case> = sizes.iter().copied().flat_map(at).collect();
    contest(place, &contenders, &cases, plan.rounds, |_| Ok(()))
}

/// All servers, each there or the reason why it is not.
struct Field<'a> {
    place: &'a Place,
    raw: Result<Server>,
    reno: Result<Server>,
    tpad: Result<Server>,
    nginx: Result<Server>,
    redis: Result<Server>,
    memcached: Result<Server>,
    flight: Result<Server>,
    mooncake: Result<Server>,
    weed: Result<Weed>,
    grpcio: Result<Server>,
    tonic: Result<Server>,
}

impl<'a> Field<'a> {
    fn new(place: &'a Place, plan: &Plan) -> Result<Self> {
        let values = values::write(place, &WIRE)?;
        // A server is called what all of its peers' names hold.
        let wanted = |server: &str| {
            let mut peers = PEERS.iter().chain(&BESIDE).filter(|name| name.contains(server));
            peers.any(|name| plan.wants(name, LIMIT))
        };
        let unless = |server: &str, start: &dyn Fn() -> Result<Server>| {
            if wanted(server) { start() } else { Err(anyhow!("not asked for")) }
        };
        let weed = if wanted("SeaweedFS") {
            servers::weed(place, "weed-wire", &place.server).and_then(|weed| {
                store(place, &weed, &values)?;
                Ok(weed)
            })
        } else {
            Err(anyhow!("not asked for"))
        };
        Ok(Self {
            place,
            raw: servers::ours(place, "raw-tcp", &values, &[]),
            reno: unless("Reno", &|| {
                servers::ours(place, "raw-tcp", &values, &["--congestion", "reno"])
            }),
            tpad: unless(OURS, &|| tpad(place)),
            nginx: unless("nginx", &|| servers::nginx(place, &values)),
            redis: unless("Redis", &|| servers::redis(place, &values)),
            memcached: unless("memcached", &|| servers::memcached(place, &values)),
            flight: unless("Flight", &|| servers::python(place, "flight_server.py", &values)),
            mooncake: unless("Mooncake", &|| servers::mooncake(place, &values)),
            weed,
            grpcio: unless("grpcio, both", &|| servers::python(place, "grpc_server.py", &values)),
            tonic: unless("tonic", &|| servers::ours(place, "generated-tonic", &values, &[])),
        })
    }

    fn contenders(&self) -> Vec<Contender<'_, Case>> {
        let load = |server, verb| self.peer_load(server, verb);
        let python = |server, script, extra| self.python(server, script, extra);
        let grpcio = |server, extra| self.python(server, "grpc_load.py", extra);
        let runs = [
            load(&self.raw, "raw"),
            load(&self.reno, "raw"),
            self.tpactl("bulk", &["--no-verify"]),
            self.tpactl("ordinary", &["--no-verify"]),
            load(&self.nginx, "http"),
            load(&self.memcached, "memcached"),
            load(&self.redis, "redis"),
            python(&self.flight, "flight_load.py", &[]),
            self.s3(),
            load(&self.tonic, "tonic"),
            grpcio(&self.grpcio, &[]),
            python(&self.mooncake, "mooncake_load.py", &[]),
        ];
        let beside = [
            self.tpactl("bulk", &[]),
            grpcio(&self.tpad, &["--tpad"]),
            grpcio(&self.tonic, &["--tpad"]),
            grpcio(&self.tpad, &["--tpad", "--defaults"]),
            grpcio(&self.tonic, &["--tpad", "--defaults"]),
        ];
        let runs = PEERS.into_iter().zip(runs);
        let runs = runs.map(|(name, run)| Contender { name, run, at: everywhere });
        let beside = BESIDE.into_iter().zip(beside);
        let beside = beside.map(|(name, run)| Contender { name, run, at: middle });
        runs.chain(beside).collect()
    }

    fn peer_load<'s>(
        &'s self,
        server: &'s Result<Server>,
        verb: &'static str,
    ) -> Result<Run<'s, Case>> {
        let server = there(server)?;
        let command = move |case: &Case| {
            let mut command = on(&self.place.client, self.place.program("peer-load")?);
            command.arg(verb).arg("--addr").arg(server.address.to_string());
            load(&mut command, case, server);
            Ok(command)
        };
        Ok(self.run(command, Sample::of_outcome))
    }

    fn python<'s>(
        &'s self,
        server: &'s Result<Server>,
        script: &'static str,
        extra: &'static [&'static str],
    ) -> Result<Run<'s, Case>> {
        let server = there(server)?;
        let command = move |case: &Case| {
            let mut command = on(&self.place.client, self.place.tool("python")?);
            command.arg(self.place.script(script)).arg("--addr").arg(server.address.to_string());
            command.args(extra);
            load(&mut command, case, server);
            Ok(command)
        };
        Ok(self.run(command, Sample::of_outcome))
    }

    fn tpactl<'s>(
        &'s self,
        receiver: &'static str,
        extra: &'static [&'static str],
    ) -> Result<Run<'s, Case>> {
        let server = there(&self.tpad)?;
        let command = move |case: &Case| {
            let mut command = server.tpactl(self.place, &self.place.client)?;
            command.args(["bench", "fetch", "--json", "--model", &case.size.model()]);
            command.args(["--concurrency", &case.concurrency.to_string()]);
            command.args(["--warmup", WARMUP, "--duration", SECONDS]);
            command.args(["--into", "--receiver", receiver]).args(extra);
            Ok(command)
        };
        Ok(self.run(command, Sample::of_tpactl))
    }

    fn s3(&self) -> Result<Run<'_, Case>> {
        let weed = self.weed.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        let command = move |case: &Case| {
            let size = case.size;
            let names = self.place.memory.join(format!("{}.names", size.model()));
            let lines: Vec<String> = (0..size.keys)
                .map(|key| {
                    let name = tpad_peers::exchange::name(size.bytes(), key);
                    format!("{} {PREFIX}/{name}", size.bytes())
                })
                .collect();
            std::fs::write(&names, lines.join("\n"))?;
            let mut command = weed.load(self.place, &self.place.client, "s3")?;
            command.arg("--objects").arg(names);
            load_args(&mut command, case, &weed.server);
            Ok(command)
        };
        Ok(self.run(command, Sample::of_outcome))
    }

    fn run<'s>(
        &'s self,
        command: impl Fn(&Case) -> Result<Command> + 's,
        read: Reader,
    ) -> Run<'s, Case> {
        Box::new(move |case| client(self.place, command(case), read, "client"))
    }
}

/// Where the S3 server keeps the values.
const PREFIX: &str = "values";

fn store(place: &Place, weed: &Weed, values: &std::path::Path) -> Result<()> {
    weed.upload(place, values, PREFIX)
}

fn there(server: &Result<Server>) -> Result<&Server> {
    server.as_ref().map_err(|error| anyhow!("{error:#}"))
}

fn load(command: &mut Command, case: &Case, server: &Server) {
    command.arg("--bytes").arg(case.size.bytes().to_string());
    load_args(command, case, server);
}

fn load_args(command: &mut Command, case: &Case, server: &Server) {
    command.args(["--concurrency", &case.concurrency.to_string()]);
    command.args(["--keys", &case.size.keys.to_string()]);
    command.args(["--warmup", WARMUP, "--seconds", SECONDS]);
    for pid in server.pids() {
        command.arg("--server").arg(pid.to_string());
    }
}

/// The daemon with a model for each size, all in its memory.
fn tpad(place: &Place) -> Result<Server> {
    let mut tiers = Tiers { dram: "2GiB", pinned: true, ..Tiers::default() };
    for size in WIRE {
        let root = place.memory.join("checkpoints").join(size.model());
        size.checkpoint(place, &root)?;
        tiers.models.push((size, root.display().to_string()));
    }
    servers::daemon(place, "tpad-wire", &tiers)
}
