//! The rest of a connection whose worker gets nothing more.

use std::future::pending;
use std::io;

use tokio::io::Interest;
use tpad_proto::handoff::FrameWriter;
use tpad_proto::handoff::v1::{self as wire, Failure, daemon_message, worker_message};

use super::Connection;

impl Connection {
    /// Tells the worker that it gets nothing more, takes what it gives back, and waits
    /// until it is gone.
    pub(super) async fn refuse(&mut self, failure: Failure) {
        let refused = wire::Refused { failure: Some(failure) };
        // What was not sent yet may hold half a frame: it goes first.
        let mut told = self.send(daemon_message::Message::Refused(refused), Vec::new());
        loop {
            if told.is_err() {
                // It cannot be told. That is no reason to end what it holds.
                self.writer = FrameWriter::to_worker();
            }
            let mut interest = Interest::READABLE;
            if !self.writer.is_empty() {
                interest |= Interest::WRITABLE;
            }
            let Ok(ready) = self.socket.ready(interest).await else {
                // The runtime ends, and the worker may not have.
                return pending().await;
            };
            if ready.is_writable() {
                told = self.flush();
            }
            if ready.is_readable() || ready.is_read_closed() {
                match self.take_back() {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) if is_the_peers(&error) => return,
                    Err(_) => return pending().await,
                }
            }
        }
    }

    /// Takes what the worker gives back; `false` when it has ended.
    fn take_back(&mut self) -> io::Result<bool> {
        let (socket, reader) = (&self.socket, &mut self.reader);
        match socket.try_io(Interest::READABLE, || reader.fill(socket)) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        }
        loop {
            // After an error nothing sensible follows.
            let Ok(Some(message)) = self.reader.next_message::<wire::WorkerMessage>() else {
                return Ok(true);
            };
            let message = message.message;
            match (self.worker.get(), message) {
                (Some(worker), Some(worker_message::Message::Release(release))) => {
                    worker.release(&release.leases);
                }
                (_, Some(worker_message::Message::Forgotten(forgotten))) => {
                    self.slabs.given_up(&forgotten.slabs);
                    self.device_slabs.given_up(&forgotten.device_slabs);
                }
                _ => {}
            }
        }
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
