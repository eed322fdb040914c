//! The handoff socket, and what workers may hold.

use std::path::PathBuf;

use super::listen::{SOCKET_PATH_MAX, socket};
use super::{Problems, size};
use crate::config::{Handoff, Listen, UnixSocket, mirror};

/// Workers at a time: some for each GPU of a large machine.
const CONNECTIONS: u64 = 256;

/// Each has a descriptor for its socket and one to watch its process.
const MOST_CONNECTIONS: u64 = 16_384;

/// The part of host memory that leases may hold.
const SHARE: u64 = 4;

pub(super) fn handoff(
    handoff: mirror::Handoff,
    listen: &Listen,
    capacity: u64,
    problems: &mut Problems,
    warnings: &mut Vec<String>,
) -> Option<Handoff> {
    let mirror::Handoff { socket: path, uids, gids, connections, lease_bytes, worker_lease_bytes } =
        handoff;
    let path = match path.as_deref() {
        Some("off") => None,
        Some(path) => {
            let path = PathBuf::from(path);
            socket("handoff.socket", &path, problems);
            if listen.uds.as_ref().is_some_and(|uds| uds.path == path) {
                problems.add(
                    "handoff.socket",
                    format!("{path:?} is listen.uds already: choose another file, or leave it out"),
                );
            }
            Some(path)
        }
        None => beside(listen, warnings),
    };
    let connections = connections.unwrap_or(CONNECTIONS);
    if !(1..=MOST_CONNECTIONS).contains(&connections) {
        problems.add(
            "handoff.connections",
            format!("{connections} is not a number of workers from 1 to {MOST_CONNECTIONS}"),
        );
    }
    let lease_bytes =
        size("handoff.lease_bytes", lease_bytes, capacity / SHARE, 0..=capacity, problems);
    let worker_lease_bytes = size(
        "handoff.worker_lease_bytes",
        worker_lease_bytes,
        lease_bytes,
        0..=lease_bytes,
        problems,
    );
    // Others that may connect are told by their credentials, not by the file's mode.
    let mode = match listen.uds.as_ref() {
        _ if !uids.is_empty() || !gids.is_empty() => 0o666,
        Some(uds) => uds.mode,
        None => 0o600,
    };
    path.map(|path| Handoff {
        socket: UnixSocket { path, mode },
        uids,
        gids,
        connections: usize::try_from(connections).unwrap_or(usize::MAX),
        lease_bytes,
        worker_lease_bytes,
    })
}

/// Beside gRPC's socket, whose path was judged already, where there is one and the
/// longer name fits.
fn beside(listen: &Listen, warnings: &mut Vec<String>) -> Option<PathBuf> {
    let grpc = &listen.uds.as_ref()?.path;
    let path = tpad_client::handoff_socket(grpc);
    let length = path.as_os_str().len();
    if length > SOCKET_PATH_MAX && grpc.as_os_str().len() <= SOCKET_PATH_MAX {
        warnings.push(format!(
            "handoff is off: {} would have {length} bytes and a Unix socket's path at most {SOCKET_PATH_MAX}: set handoff.socket, to \"off\" or a shorter one",
            path.display()
        ));
    }
    (length <= SOCKET_PATH_MAX).then_some(path)
}

impl Handoff {
    /// Whether a peer may read the daemon's memory.
    pub(crate) fn admits(&self, uid: u32, gid: u32) -> bool {
        let own = rustix::process::geteuid().as_raw();
        uid == own || uid == 0 || self.uids.contains(&uid) || self.gids.contains(&gid)
    }
}
