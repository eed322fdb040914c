//! A TCP listener whose peers within the machine are sent to as fast as they read.
//!
//! Within a machine no network is to be spared, but BBR, where that is the system's congestion
//! control, paces long writes over loopback: a loop that writes 1 MiB took 281 to 465 us of
//! processor time for each, and with Reno 187 to 214 (docs/performance.md, "Pacing within a
//! machine"). A socket that BBR once had stays paced whatever is set on it later, so the listener
//! has Reno, and what comes from elsewhere gets the system's choice back.

use std::io;
use std::net::SocketAddr;

use rustix::net::sockopt::{set_tcp_congestion, tcp_congestion};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::peer::Peer;

/// A bound listener.
#[derive(Debug)]
pub(super) struct Unpaced {
    listener: TcpListener,
    /// The system's choice, where it is another.
    system: Option<String>,
}

impl Unpaced {
    pub(super) fn listen(socket: TcpSocket, backlog: u32) -> io::Result<Self> {
        // Where either is refused all are sent to as the system has it.
        let system = tcp_congestion(&socket).ok();
        let set = system.is_some() && set_tcp_congestion(&socket, "reno").is_ok();
        Ok(Self { listener: socket.listen(backlog)?, system: system.filter(|_| set) })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(super) async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (socket, remote) = self.listener.accept().await?;
        let peer = Peer::Tcp { local: socket.local_addr().ok(), remote };
        if !peer.is_on_this_machine()
            && let Some(system) = &self.system
        {
            // It was this listener's own before.
            let _ = set_tcp_congestion(&socket, system);
        }
        Ok((socket, peer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn peers_of_the_machine_have_reno_from_the_first_segment() {
        let socket = TcpSocket::new_v4().expect("a socket");
        let system = tcp_congestion(&socket).expect("Linux says");
        socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let listener = Unpaced::listen(socket, 8).expect("it is bound");
        assert_eq!(listener.system, Some(system), "for the others");
        let inherited = tcp_congestion(&listener.listener).expect("Linux says");
        assert_eq!(inherited, "reno", "before anybody connects");
        let address = listener.local_addr().expect("it is bound");
        let _client = TcpStream::connect(address).await.expect("it listens");
        let (socket, peer) = listener.accept().await.expect("a connection");
        assert!(peer.is_on_this_machine());
        assert_eq!(tcp_congestion(&socket).expect("Linux says"), "reno");
    }
}
