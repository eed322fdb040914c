//! Where the daemon listens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Problems;
use crate::config::{Listen, Surroundings, UnixSocket, mirror};

const GRPC_DEFAULT: &str = "127.0.0.1:7070";
const HTTP_DEFAULT: &str = "127.0.0.1:7071";

/// `sun_path` holds 108 bytes with its end; the socket is made under a name four bytes longer first.
pub(super) const SOCKET_PATH_MAX: usize = 103;

pub(super) fn listen(
    listen: mirror::Listen,
    allow_plaintext: bool,
    surroundings: &Surroundings,
    problems: &mut Problems,
) -> Listen {
    let mirror::Listen { grpc, uds, uds_mode, http } = listen;
    let grpc = address("listen.grpc", grpc.as_deref().unwrap_or(GRPC_DEFAULT), problems);
    if let Some(address) = grpc
        && !address.ip().is_loopback()
        && !allow_plaintext
    {
        problems.add(
            "listen.grpc",
            format!(
                "{address} is not a loopback address, and gRPC is neither encrypted nor authenticated here: \
                 whoever reaches the port can read every model; listen on 127.0.0.1, or set allow_plaintext = true \
                 if the network is trusted"
            ),
        );
    }
    let http = address("listen.http", http.as_deref().unwrap_or(HTTP_DEFAULT), problems);

    let mode = match uds_mode.as_deref().unwrap_or("0600") {
        "0600" => 0o600,
        "0660" => 0o660,
        other => {
            problems.add(
                "listen.uds_mode",
                format!(
                    "{other:?} is neither \"0600\" (this user) nor \"0660\" (this user's group too)"
                ),
            );
            0o600
        }
    };
    let path = match uds.as_deref() {
        Some("off") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Some(surroundings.socket.clone()),
    };
    if let Some(path) = &path {
        socket("listen.uds", path, problems);
    }
    if grpc.is_none() && path.is_none() && problems.0.is_empty() {
        problems.add(
            "listen",
            "grpc and uds are both off, so nobody could ask for anything: turn one on",
        );
    }
    Listen { grpc, uds: path.map(|path| UnixSocket { path, mode }), http }
}

/// Judges a Unix socket's path.
pub(super) fn socket(key: &str, path: &Path, problems: &mut Problems) {
    let length = path.as_os_str().len();
    if !path.is_absolute() {
        problems.add(key, format!("{path:?} is not an absolute path; write one, or \"off\""));
    } else if path.file_name().is_none() {
        problems.add(key, format!("{path:?} names no file"));
    } else if length > SOCKET_PATH_MAX {
        problems.add(
            key,
            format!(
                "the path has {length} bytes and a Unix socket's at most {SOCKET_PATH_MAX}: choose a shorter one"
            ),
        );
    }
}

fn address(key: &str, text: &str, problems: &mut Problems) -> Option<SocketAddr> {
    if text == "off" {
        return None;
    }
    let parsed = text.strip_prefix("localhost:").map_or_else(
        || text.parse::<SocketAddr>().ok(),
        |port| port.parse().ok().map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port))),
    );
    if parsed.is_none() {
        problems.add(
            key,
            format!(
                "{text:?} is not an address and port, such as \"127.0.0.1:7070\" or \"[::1]:7070\" (port 0 takes a free \
                 one); \"off\" turns it off"
            ),
        );
    }
    parsed
}
