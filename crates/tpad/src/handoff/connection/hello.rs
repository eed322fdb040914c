//! The first word of a worker.

use tonic::Code;
use tpad_engine::WorkerName;
use tpad_proto::handoff::PROTOCOL;
use tpad_proto::handoff::v1::{self as wire, daemon_message};

use super::calls::KEYS;
use super::{Connection, End, Holder};
use crate::handoff::answer;

/// Bytes of a worker's name that are kept.
const NAME_BYTES: usize = 64;

impl Connection {
    /// Takes a worker on.
    pub(super) fn hello(&mut self, hello: wire::Hello) -> Result<(), End> {
        let wire::Hello { protocol, worker: name, directories } = hello;
        if protocol != PROTOCOL {
            let message = format!(
                "this daemon speaks version {PROTOCOL} of the handoff's protocol, and the worker version {protocol}: use a client of its version"
            );
            return Err(End::Refused(answer::refused(
                Code::FailedPrecondition,
                "PROTOCOL_VERSION",
                &message,
            )));
        }
        let text: String = name.chars().filter(|c| !c.is_control()).collect();
        let name = text[..text.floor_char_boundary(NAME_BYTES)].to_owned();
        let name = WorkerName { pid: self.peer.pid, uid: Some(self.peer.uid), name };
        let engine = &self.shared.engine;
        let worker = engine.worker(name, directories);
        let welcome = wire::Welcome {
            protocol: PROTOCOL,
            epoch: engine.epoch(),
            lease_bytes: worker.most_bytes(),
            keys: u32::try_from(KEYS).unwrap_or(u32::MAX),
            devices: engine.devices(),
        };
        self.worker = Holder::of(worker);
        self.send(daemon_message::Message::Welcome(welcome), Vec::new())
    }
}
