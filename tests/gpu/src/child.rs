//! Other processes: a worker that imports what it is sent, a daemon that exports.
//!
//! One message is one packet on a socket that the child has as its standard input; a
//! slab's descriptor goes along with its message.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::stage::Stage;

pub mod client;
pub mod daemon;
pub mod worker;

/// More than any message takes.
const MESSAGE_BYTES: usize = 1024;

/// Another process. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    socket: OwnedFd,
}

impl Process {
    /// Runs this program in a role.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(stage: &Stage, role: &str, arguments: &[String]) -> Result<Self> {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(&stage.program);
        command.arg(role).args(stage.machine.arguments()).args(arguments);
        let child = command.stdin(Stdio::from(theirs)).spawn();
        let child = child.with_context(|| format!("{} does not run", stage.program.display()))?;
        Ok(Self { child, socket })
    }

    /// Says something and waits for the answer.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn ask<A: DeserializeOwned>(
        &self,
        what: &impl Serialize,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<A> {
        self.say(what, descriptor)?;
        Ok(self.hear()?.0)
    }

    /// Says something.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn say(&self, what: &impl Serialize, descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
        send(self.socket.as_fd(), what, descriptor)
    }

    /// Waits for something.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn hear<A: DeserializeOwned>(&self) -> Result<(A, Option<OwnedFd>)> {
        receive(self.socket.as_fd())?.context("the other process is gone")
    }

    /// Kills it, and waits until it is gone.
    ///
    /// # Errors
    /// When the system does not let it.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        let _gone = self.kill();
    }
}

/// The role that this program was started in, if it was: see [`Process::start`].
///
/// # Errors
/// When the role cannot go on.
pub fn play(role: &str, arguments: &mut impl Iterator<Item = OsString>) -> Result<()> {
    match role {
        "client" => client::play(arguments),
        "worker" => worker::play(arguments),
        "daemon" => daemon::play(arguments),
        other => bail!("{other} is no role"),
    }
}

fn send(socket: BorrowedFd<'_>, what: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let message = serde_json::to_vec(what)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let sent = sendmsg(socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL);
    sent.context("the other process does not hear")?;
    Ok(())
}

fn receive<A: DeserializeOwned>(socket: BorrowedFd<'_>) -> Result<Option<(A, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut message = [0; MESSAGE_BYTES];
    let parts = &mut [IoSliceMut::new(&mut message)];
    let received = recvmsg(socket, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC);
    let received = match received {
        Err(rustix::io::Errno::CONNRESET) => return Ok(None),
        other => other?,
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptor = None;
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = part {
            descriptor = fds.next();
        }
    }
    Ok(Some((serde_json::from_slice(&message[..received.bytes])?, descriptor)))
}
