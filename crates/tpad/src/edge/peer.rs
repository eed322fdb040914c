//! Who is at the other end of a connection.

use std::fmt;
use std::net::SocketAddr;

use http::Extensions;
use tonic::transport::server::TcpConnectInfo;

/// The other end of a connection; in the request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Tcp {
        /// The address that the connection came in on.
        local: Option<SocketAddr>,
        /// The peer's address.
        remote: SocketAddr,
    },
    /// Over the Unix socket: who it is, as the kernel says.
    Unix {
        /// The peer's user.
        uid: Option<u32>,
        /// The peer's process.
        pid: Option<i32>,
    },
}

impl Peer {
    /// Whether the peer is on this machine.
    pub fn is_local(&self) -> bool {
        match self {
            // A socket that takes IPv6 and IPv4 alike shows the latter mapped.
            Self::Tcp { remote, .. } => remote.ip().to_canonical().is_loopback(),
            Self::Unix { .. } => true,
        }
    }

    /// Whether what is sent to it never leaves the machine's network. It may administer nothing
    /// for that.
    pub(super) fn is_on_this_machine(&self) -> bool {
        let own_address = match self {
            Self::Tcp { local: Some(local), remote } => {
                local.ip().to_canonical() == remote.ip().to_canonical()
            }
            Self::Tcp { local: None, .. } | Self::Unix { .. } => false,
        };
        own_address || self.is_local()
    }

    /// Adds the peer to a request's extensions, in tonic's own form too.
    pub(super) fn describe(self, extensions: &mut Extensions) {
        if let Self::Tcp { local, remote } = self {
            extensions.insert(TcpConnectInfo { local_addr: local, remote_addr: Some(remote) });
        }
        extensions.insert(self);
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { remote, .. } => write!(f, "{remote}"),
            Self::Unix { pid: Some(pid), .. } => write!(f, "uds:pid={pid}"),
            Self::Unix { pid: None, .. } => f.write_str("uds"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_the_unix_socket_are_local_and_nothing_else_is() {
        let tcp = |remote: &str| Peer::Tcp { local: None, remote: remote.parse().expect("one") };
        assert!(Peer::Unix { uid: None, pid: None }.is_local());
        for local in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(tcp(local).is_local(), "{local}");
        }
        for other in ["10.0.0.7:1", "[fe80::1]:1", "[::ffff:10.0.0.7]:1", "0.0.0.0:1"] {
            assert!(!tcp(other).is_local(), "{other}");
        }
    }

    #[test]
    fn who_comes_from_the_address_it_goes_to_is_on_this_machine_and_not_local() {
        let parse = |address: &str| address.parse().expect("an address");
        let from =
            |remote: &str| Peer::Tcp { local: Some(parse("10.0.0.7:80")), remote: parse(remote) };
        for own in ["10.0.0.7:1", "[::ffff:10.0.0.7]:1"] {
            assert!(from(own).is_on_this_machine() && !from(own).is_local(), "{own}");
        }
        assert!(from("127.0.0.1:1").is_on_this_machine());
        assert!(!from("10.0.0.8:1").is_on_this_machine());
        assert!(!Peer::Tcp { local: None, remote: parse("10.0.0.7:1") }.is_on_this_machine());
        assert!(Peer::Unix { uid: None, pid: None }.is_on_this_machine());
    }
}
