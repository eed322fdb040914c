//! Who is at the other end of a handoff connection, and when it is gone.
#![expect(unsafe_code, reason = "a descriptor that is not a socket is watched by no safe function")]

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

/// The process that connected, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// `None` where it is in a namespace that this process does not see.
    pub(super) pid: Option<i32>,
}

/// Tells when a process has ended. A child that it has forked may keep its socket open.
#[derive(Debug)]
pub(super) enum Life {
    /// It had ended before it could be watched.
    Over,
    Watched(AsyncFd<OwnedFd>),
    /// The socket's end is all that tells.
    Unknown,
}

impl Credentials {
    pub(super) fn of(socket: &UnixStream) -> io::Result<Self> {
        let found = socket.peer_cred()?;
        let pid = found.pid().filter(|pid| *pid > 0);
        Ok(Self { uid: found.uid(), gid: found.gid(), pid })
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uid, gid, pid } = self;
        match pid {
            Some(pid) => write!(f, "process {pid} (user {uid}, group {gid})"),
            None => write!(f, "a process of another namespace (user {uid}, group {gid})"),
        }
    }
}

impl Life {
    /// Of the process that connected: it is asked for at once, before another can have
    /// its number. Where it cannot be watched, the socket's end is all there is.
    pub(super) fn of(peer: Credentials) -> Self {
        let Some(pid) = peer.pid.and_then(Pid::from_raw) else { return Self::Unknown };
        let opened = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Err(Errno::SRCH) => return Self::Over,
            opened => opened,
        };
        // SAFETY: an `OwnedFd` is open and stays the same one until it is dropped, which
        // it is with what it is registered in.
        let watch = |fd| unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        opened.ok().and_then(|fd| watch(fd).ok()).map_or(Self::Unknown, Self::Watched)
    }

    /// Completes when it has ended.
    pub(super) async fn ended(&self) {
        match self {
            Self::Over => {}
            // An error of the watch itself tells nothing.
            Self::Watched(fd) if fd.readable().await.is_ok() => {}
            Self::Watched(_) | Self::Unknown => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_process_is_told_and_nothing_before_it() {
        let mut child =
            Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat");
        let pid = i32::try_from(child.id()).ok();
        let life = Life::of(Credentials { uid: 0, gid: 0, pid });
        let ended = tokio::time::timeout(std::time::Duration::from_millis(50), life.ended()).await;
        assert!(ended.is_err(), "it lives");
        drop(child.stdin.take());
        tokio::time::timeout(std::time::Duration::from_secs(20), life.ended())
            .await
            .expect("it has ended");
        child.wait().expect("it is reaped");
        assert!(matches!(Life::of(Credentials { uid: 0, gid: 0, pid }), Life::Over));
    }

    #[tokio::test]
    async fn who_connects_is_known() {
        let (one, _two) = UnixStream::pair().expect("a pair");
        let peer = Credentials::of(&one).expect("the kernel says");
        assert_eq!(peer.pid, i32::try_from(std::process::id()).ok());
        assert_eq!(peer.uid, rustix::process::getuid().as_raw());
    }
}
