//! The servers: how each is started, given its values, and known to be ready.

mod daemon;
mod weed;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::children::{self, Child, on};
use crate::place::{Place, free_address, listens};
use crate::wire::WIRE;

pub(crate) use daemon::{Tiers, daemon};
pub(crate) use weed::{Weed, weed};

/// Most are there in a second; Python with its libraries takes some, and reading the
/// values takes a loaded machine longer.
pub(crate) const START: Duration = Duration::from_secs(60);

/// A server with everything that it consists of.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    processes: Vec<Child>,
}

impl Server {
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Child::pid).collect()
    }

    /// Starts one process and waits until somebody listens at `address`.
    fn start(
        place: &Place,
        name: &str,
        command: &mut Command,
        address: SocketAddr,
    ) -> Result<Self> {
        let mut child = Child::start(command, place.log(name))?;
        child.wait_until(START, |_| listens(address))?;
        Ok(Self { address, processes: vec![child] })
    }
}

/// One of this workspace's servers that takes its values from files.
pub(crate) fn ours(place: &Place, program: &str, values: &Path, extra: &[&str]) -> Result<Server> {
    let address = free_address()?;
    let mut command = on(&place.server, place.program(program)?);
    command.arg("--listen").arg(address.to_string()).arg("--from").arg(values).args(extra);
    Server::start(place, program, &mut command, address)
}

/// What tonic generates, on a Unix socket.
pub(crate) fn tonic_at(place: &Place, socket: &Path, values: &Path) -> Result<Child> {
    let mut command = on(&place.server, place.program("generated-tonic")?);
    command.arg("--uds").arg(socket).arg("--from").arg(values);
    let mut child = Child::start(&mut command, place.log("generated-tonic-uds"))?;
    child.wait_until(START, |_| std::os::unix::net::UnixStream::connect(socket).is_ok())?;
    Ok(child)
}

/// A server of `python/`.
pub(crate) fn python(place: &Place, script: &str, values: &Path) -> Result<Server> {
    let address = free_address()?;
    let mut command = on(&place.server, place.tool("python")?);
    command.arg(place.script(script));
    command.arg("--listen").arg(address.to_string()).arg("--from").arg(values);
    Server::start(place, script, &mut command, address)
}

/// nginx, with the values as files in memory.
pub(crate) fn nginx(place: &Place, values: &Path) -> Result<Server> {
    let program = place.system("nginx", "nginx-light")?;
    let address = free_address()?;
    let directory = place.memory.join("nginx");
    std::fs::create_dir_all(&directory)?;
    let user = if rustix::process::getuid().is_root() { "user root;" } else { "" };
    let configuration = format!(
        "daemon off; {user} worker_processes {workers}; pid {at}/pid; error_log {at}/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{\n\
         access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
         client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at};\n\
         uwsgi_temp_path {at}; scgi_temp_path {at};\n\
         server {{ listen {address}; root {values}; }}\n\
         }}\n",
        workers = place.server_threads,
        at = directory.display(),
        values = values.display(),
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration)?;
    let mut command = on(&place.server, program);
    command.arg("-c").arg(&file).arg("-e").arg(directory.join("error.log"));
    Server::start(place, "nginx", &mut command, address)
}

/// Redis, without persistence.
pub(crate) fn redis(place: &Place, values: &Path) -> Result<Server> {
    let program = place.system("redis-server", "redis-server")?;
    let address = free_address()?;
    let mut command = on(&place.server, program);
    command.args(["--bind", "127.0.0.1", "--port", &address.port().to_string()]);
    command.args(["--save", "", "--appendonly", "no"]);
    command.arg("--dir").arg(&place.memory);
    let server = Server::start(place, "redis", &mut command, address)?;
    fill(place, "fill-redis", address, values)?;
    Ok(server)
}

/// memcached, whose items may be as large as the values.
pub(crate) fn memcached(place: &Place, values: &Path) -> Result<Server> {
    let program = place.system("memcached", "memcached")?;
    let address = free_address()?;
    let mut command = on(&place.server, program);
    command.args(["-l", "127.0.0.1", "-p", &address.port().to_string(), "-U", "0"]);
    // An item may take half of the memory at most, and nothing may be evicted.
    command.args(["-m", "2048", "-I", "256m", "-M"]);
    command.args(["-t", &place.server_threads.to_string()]);
    if rustix::process::getuid().is_root() {
        command.args(["-u", "root"]);
    }
    let server = Server::start(place, "memcached", &mut command, address)?;
    fill(place, "fill-memcached", address, values)?;
    Ok(server)
}

/// Mooncake Store: its master, and a process that lends the memory.
pub(crate) fn mooncake(place: &Place, values: &Path) -> Result<Server> {
    let (address, metrics) = (free_address()?, free_address()?);
    let mut command = on(&place.server, place.tool("mooncake_master")?);
    command.arg("-rpc_address=127.0.0.1").arg(format!("-rpc_port={}", address.port()));
    command.arg(format!("-metrics_port={}", metrics.port()));
    // A value whose lease ends while it is read fails the read; its 5 s are too few for
    // 16 times 128 MiB on one processor.
    command.arg("-default_kv_lease_ttl=120000");
    let mut server = Server::start(place, "mooncake-master", &mut command, address)?;
    let stored: usize = WIRE.iter().map(|size| size.keys * size.bytes()).sum();
    let mut owner = on(&place.server, place.tool("python")?);
    owner.arg(place.script("mooncake_server.py"));
    owner.arg("--master").arg(address.to_string());
    // It evicts from 95 % on.
    owner.arg("--segment").arg((stored * 2).to_string()).arg("--from").arg(values);
    let mut owner = Child::start(&mut owner, place.log("mooncake-store"))?;
    let ready = |log: &Path| {
        let said = std::fs::read(log).unwrap_or_default();
        String::from_utf8_lossy(&said).lines().any(|line| line == "ready")
    };
    owner.wait_until(START, ready)?;
    server.processes.push(owner);
    Ok(server)
}

fn fill(place: &Place, verb: &str, address: SocketAddr, values: &Path) -> Result<()> {
    let mut command = on(&place.client, place.program("peer-load")?);
    command.arg(verb).arg("--addr").arg(address.to_string()).arg("--from").arg(values);
    children::output(&mut command, &place.log(verb), START).context("storing the values")?;
    Ok(())
}
