//! What workers are told.

use std::io;

use prost::Message as _;
use tonic::Code;
use tpad_engine::{Acquired, DeviceAcquired, DeviceLeased, EngineError, Generation, Leased};
use tpad_proto::handoff::DAEMON_FRAME_BYTES;
use tpad_proto::handoff::v1::outcome::Outcome;
use tpad_proto::handoff::v1::{self as wire, Failure};
use tpad_store::ErrorKind;

use super::peer::Credentials;
use crate::grpc::{code_of, medium, retry_after};

/// Longest text of a failure.
const TEXT_BYTES: usize = 2048;

/// What a slab adds to an answer at most, and each answer to its message: three numbers,
/// a device's UUID of 40 bytes, tags and lengths.
const SLAB_BYTES: usize = 88;

/// What a directory adds at most.
const DIRECTORY_BYTES: usize = 16;

/// An error of the engine.
pub(super) fn failure(error: &EngineError) -> Failure {
    refused(code_of(error.kind()), error.reason(), &error.to_string())
}

/// A refusal; `reason` is what programs compare.
pub(super) fn refused(code: Code, reason: &str, message: &str) -> Failure {
    let message = message[..message.floor_char_boundary(TEXT_BYTES)].to_owned();
    // gRPC's codes are 0 to 16.
    let number = u32::try_from(i32::from(code)).unwrap_or(0);
    let retry = match code {
        Code::ResourceExhausted => retry_after(ErrorKind::ResourceExhausted),
        Code::Unavailable => retry_after(ErrorKind::Unavailable),
        _ => None,
    };
    let retry_ms = retry.map_or(0, |retry| u32::try_from(retry.as_millis()).unwrap_or(u32::MAX));
    Failure { code: number, message, reason: reason.to_owned(), retry_ms }
}

/// What was sent makes no sense.
pub(super) fn invalid(message: &str) -> Failure {
    refused(Code::InvalidArgument, "REQUEST_INVALID", message)
}

/// There is no place for one more worker.
pub(super) fn full(limit: usize) -> Failure {
    let message = format!(
        "{limit} workers are connected, the most that handoff.connections allows: close one, or raise it"
    );
    refused(Code::ResourceExhausted, "WORKERS_FULL", &message)
}

/// The peer may not read this daemon's memory.
pub(super) fn not_admitted(peer: &Credentials) -> Failure {
    let message = format!(
        "{peer} may not read this daemon's memory: run it as the daemon's user, or add its user to handoff.uids or its group to handoff.gids"
    );
    refused(Code::PermissionDenied, "PEER_NOT_ADMITTED", &message)
}

/// A worker asks for more at once than can be kept.
pub(super) fn too_many_calls() -> Failure {
    refused(
        Code::ResourceExhausted,
        "CALLS_WAITING",
        "too many Acquire calls wait for others of this worker: ask for more keys in one, or wait for answers",
    )
}

/// The daemon ends.
pub(super) fn draining() -> Failure {
    refused(
        Code::Unavailable,
        "DRAINING",
        "the daemon drains and grants no more leases; those that are held stay valid: connect again for more",
    )
}

/// A generation was asked for that is not served any more.
pub(super) fn generation_changed(asked: u64, served: &Generation) -> Failure {
    let message = format!(
        "generation {asked} of model {:?} was asked for and {} is served: ask without one, or for that",
        served.model(),
        served.number()
    );
    refused(Code::FailedPrecondition, "GENERATION_CHANGED", &message)
}

/// The worker keeps slabs that it was asked to give up.
pub(super) fn kept_slabs() -> Failure {
    refused(
        Code::FailedPrecondition,
        "SLABS_KEPT",
        "slabs that the daemon asked for stay mapped: answer Forget with Forgotten, or close the socket",
    )
}

/// The worker names more slots in its cells than it may hold.
pub(super) fn holds_too_much() -> Failure {
    refused(
        Code::ResourceExhausted,
        "LEASES_OVER_BOUND",
        "this worker keeps holding more than handoff.worker_lease_bytes: let go of blocks, connect again, and hold fewer at a time",
    )
}

/// A device's memory cannot be handed over.
pub(super) fn no_memory_of_a_device(error: &io::Error) -> Failure {
    let message = format!(
        "a slab of the device cannot be handed over ({error}): acquire the blocks in host memory"
    );
    refused(Code::Unavailable, "DEVICE_SLAB_UNAVAILABLE", &message)
}

/// The daemon is out of descriptors.
pub(super) fn no_descriptor(error: &io::Error) -> Failure {
    let message = format!(
        "the daemon has no file descriptor for a slab ({error}): raise its limit, and connect again"
    );
    refused(Code::ResourceExhausted, "DESCRIPTORS_OUT", &message)
}

/// The answer to an `Acquire`, without slabs.
pub(super) fn acquired(
    call: u64,
    generation: &Generation,
    acquired: &Acquired,
) -> Result<wire::Acquired, Failure> {
    answer(call, generation, acquired.iter().map(outcome).collect::<Result<_, _>>()?)
}

/// The answer to an `Acquire` on a device, without slabs.
pub(super) fn acquired_on_device(
    call: u64,
    generation: &Generation,
    acquired: &DeviceAcquired,
) -> Result<wire::Acquired, Failure> {
    answer(call, generation, acquired.iter().map(outcome_on_device).collect::<Result<_, _>>()?)
}

fn answer(
    call: u64,
    generation: &Generation,
    outcomes: Vec<wire::Outcome>,
) -> Result<wire::Acquired, Failure> {
    let slabs_bytes = outcomes.len() * SLAB_BYTES;
    let answer = wire::Acquired {
        call,
        revision: generation.revision(),
        generation: generation.number(),
        outcomes,
        failure: None,
        slabs: Vec::new(),
        directory: None,
    };
    let bytes = answer.encoded_len() + slabs_bytes + DIRECTORY_BYTES;
    if bytes > DAEMON_FRAME_BYTES {
        let message = format!(
            "the answer takes {bytes} bytes, {DAEMON_FRAME_BYTES} is the most: lease fewer blocks at a time"
        );
        return Err(refused(Code::ResourceExhausted, "ANSWER_TOO_LARGE", &message));
    }
    Ok(answer)
}

fn outcome_on_device(result: &Result<DeviceLeased, EngineError>) -> Result<wire::Outcome, Failure> {
    let outcome = match result {
        Err(error) => Outcome::Failure(failure(error)),
        Ok(leased) => {
            let described = tpad_proto::block(&leased.key, &leased.record, medium(leased.medium));
            let described = described.map_err(|source| {
                failure(&EngineError::BlockSize { key: leased.key.clone(), source })
            })?;
            Outcome::Lease(wire::Lease {
                lease: leased.lease,
                slab: leased.place.slab,
                offset: leased.place.offset,
                block: Some(described),
                ordinal: leased.ordinal,
            })
        }
    };
    Ok(wire::Outcome { outcome: Some(outcome) })
}

fn outcome(result: &Result<Leased, EngineError>) -> Result<wire::Outcome, Failure> {
    let outcome = match result {
        Err(error) => Outcome::Failure(failure(error)),
        Ok(leased) => {
            let (block, served) = (&leased.block, &leased.block.served);
            let described = tpad_proto::block(&block.key, &block.record, medium(served.medium));
            let described = described.map_err(|source| {
                let key = block.key.clone();
                failure(&EngineError::BlockSize { key, source })
            })?;
            Outcome::Lease(wire::Lease {
                lease: leased.lease,
                slab: leased.place.slab,
                offset: leased.place.offset,
                block: Some(described),
                ordinal: leased.ordinal,
            })
        }
    };
    Ok(wire::Outcome { outcome: Some(outcome) })
}
