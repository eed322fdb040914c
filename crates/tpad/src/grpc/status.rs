//! The one table from what went wrong to what a gRPC client sees.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tpad_engine::EngineError;
use tpad_store::ErrorKind;

use super::call::Call;

/// `ErrorInfo.domain` of every error.
const DOMAIN: &str = "tpad";

/// Longest text of a status. Statuses travel in headers, of which clients take
/// 8 KiB by default.
const TEXT_BYTES: usize = 2048;

/// The code of each kind.
pub(crate) const fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        ErrorKind::DataLoss => Code::DataLoss,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Internal => Code::Internal,
    }
}

/// When trying again may help: memory comes free within a few blocks' time, a
/// failed origin or model is tried again every second at first.
pub(crate) const fn retry_after(kind: ErrorKind) -> Option<Duration> {
    match kind {
        ErrorKind::ResourceExhausted => Some(Duration::from_millis(100)),
        ErrorKind::Unavailable => Some(Duration::from_secs(1)),
        ErrorKind::NotFound
        | ErrorKind::Denied
        | ErrorKind::DeadlineExceeded
        | ErrorKind::DataLoss
        | ErrorKind::InvalidArgument
        | ErrorKind::FailedPrecondition
        | ErrorKind::Cancelled
        | ErrorKind::Internal => None,
    }
}

/// The status of an engine's error; `metadata` goes into its `ErrorInfo`.
pub(super) fn of(error: &EngineError, call: &Call, metadata: &[(&str, String)]) -> Status {
    with_details(error.kind(), error.reason(), &error.to_string(), call, metadata)
}

/// A request that makes no sense, as told by the field that is wrong.
pub(super) fn invalid(field: &str, problem: &str, call: &Call) -> Status {
    let metadata = [("field", field.to_owned())];
    let message = format!("{field}: {problem}");
    with_details(ErrorKind::InvalidArgument, "REQUEST_INVALID", &message, call, &metadata)
}

/// A peer of another machine wants to change what the daemon does.
pub(super) fn peer_not_local(call: &Call) -> Status {
    let message = "administration is for peers on the Unix socket and on loopback: ask from the daemon's own machine";
    with_details(ErrorKind::Denied, "PEER_NOT_LOCAL", message, call, &[])
}

/// A stream is to go on with blocks of a revision that is not served any more.
pub(super) fn revision_changed(broken: u64, served: u64, call: &Call) -> Status {
    let message = format!(
        "resume: the stream that broke had revision {broken}, revision {served} is served: ask again without what came"
    );
    let metadata = [("revision", served.to_string())];
    with_details(ErrorKind::FailedPrecondition, "REVISION_CHANGED", &message, call, &metadata)
}

/// As many large replies exist as may.
pub(super) fn replies_busy(call: &Call) -> Status {
    let message = "descriptions and pages that clients have not taken leave no room for another: try again later";
    with_details(ErrorKind::ResourceExhausted, "REPLIES_BUSY", message, call, &[])
}

/// A defect of this program.
pub(super) fn internal(message: &str, call: &Call) -> Status {
    with_details(ErrorKind::Internal, "INTERNAL", message, call, &[])
}

fn with_details(
    kind: ErrorKind,
    reason: &str,
    message: &str,
    call: &Call,
    metadata: &[(&str, String)],
) -> Status {
    let mut info: HashMap<String, String> =
        metadata.iter().map(|(name, value)| ((*name).to_owned(), bounded(value))).collect();
    if !call.id().is_empty() {
        info.insert("request_id".to_owned(), call.id().to_owned());
    }
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, info);
    if let Some(delay) = retry_after(kind) {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code(kind), bounded(message), details)
}

/// At most [`TEXT_BYTES`] of `text`.
fn bounded(text: &str) -> String {
    if text.len() <= TEXT_BYTES {
        return text.to_owned();
    }
    format!("{} ...", &text[..text.floor_char_boundary(TEXT_BYTES - 4)])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Request;

    use super::*;

    /// The table that clients and `docs` rely on: kind, code, retry.
    const TABLE: [(ErrorKind, Code, bool); 10] = [
        (ErrorKind::NotFound, Code::NotFound, false),
        (ErrorKind::Denied, Code::PermissionDenied, false),
        (ErrorKind::Unavailable, Code::Unavailable, true),
        (ErrorKind::ResourceExhausted, Code::ResourceExhausted, true),
        (ErrorKind::DeadlineExceeded, Code::DeadlineExceeded, false),
        (ErrorKind::DataLoss, Code::DataLoss, false),
        (ErrorKind::InvalidArgument, Code::InvalidArgument, false),
        (ErrorKind::FailedPrecondition, Code::FailedPrecondition, false),
        (ErrorKind::Cancelled, Code::Cancelled, false),
        (ErrorKind::Internal, Code::Internal, false),
    ];

    fn call() -> Call {
        Call::of(&Request::new(()), Duration::from_secs(1))
    }

    #[test]
    fn every_kind_has_its_code_and_only_passing_ones_a_retry() {
        for (kind, expected, retry) in TABLE {
            let status = with_details(kind, "REASON", "message", &call(), &[]);
            assert_eq!(status.code(), expected, "{kind:?}");
            let pushback = status.get_details_retry_info().and_then(|info| info.retry_delay);
            assert_eq!(pushback.is_some(), retry, "{kind:?}");
        }
    }

    #[test]
    fn errors_carry_domain_reason_and_metadata() {
        let error = EngineError::ModelLoading { model: "m".into() };
        let status = of(&error, &call(), &[("keys", "a; b".into())]);
        let info = status.get_details_error_info().expect("it has one");
        assert_eq!((&*info.domain, &*info.reason), ("tpad", "MODEL_LOADING"));
        assert_eq!(info.metadata["keys"], "a; b");
        assert_eq!(status.message(), "model \"m\" is still loading");
    }

    /// Every error of the engine, one of each reason.
    fn errors() -> Vec<EngineError> {
        use tpad_engine::{FileProblem, IndexProblem};
        use tpad_manifest::{BlockId, BlockKey, MaskError, SizeError, TierError};
        let (name, key) = (String::new, || BlockKey::Dense { name: "x".into() });
        let tier = |source| EngineError::Tier { model: name(), source };
        let mask = |source| EngineError::Mask { model: name(), source };
        let size = || SizeError::UnknownDtype("Q9".into());
        let read = tpad_store::ReadError::Deadline { id: BlockId::from_bytes([0; 32]) };
        vec![
            EngineError::UnknownModel { model: name(), known: vec![] },
            EngineError::ModelLoading { model: name() },
            EngineError::ModelFailed { model: name(), reason: name() },
            tier(TierError::Unknown { tier: name(), known: vec![] }),
            tier(TierError::Skipped { tier: name(), reason: name() }),
            tier(TierError::NoIndex { tier: name() }),
            EngineError::UnknownGroup { tier: name(), group: 0, groups: 0 },
            EngineError::UnknownExpert { tier: name(), group: 0, expert: 0, experts: 0 },
            EngineError::UnknownLayer { tier: name(), layer: 0, layers: name() },
            EngineError::NoRouter { tier: name(), place: name() },
            EngineError::UnknownDense { model: name(), name: name(), close: vec![] },
            EngineError::UnknownFile { model: name(), name: name(), known: vec![] },
            mask(MaskError::UnknownSet { name: name(), known: vec![] }),
            mask(MaskError::Empty { why: name() }),
            mask(MaskError::TooLarge { entries: 2, what: "experts", limit: 1, remedy: "less" }),
            EngineError::NothingSelected,
            EngineError::TooManyBlocks { count: 2, limit: 1 },
            EngineError::SelectionsBusy { count: 1 },
            EngineError::Index { place: name(), source: IndexProblem::Interrupted.into() },
            EngineError::BlockSize { key: key(), source: size() },
            EngineError::Block { key: key(), source: read.into() },
            EngineError::File { name: name(), source: FileProblem::Interrupted.into() },
            EngineError::PinCapacity { asked: 2, held: 1, limit: 2 },
            EngineError::PinRefused { key: key() },
            EngineError::TooManyPins { limit: 1 },
            EngineError::UnknownPin { owner: name() },
            EngineError::PageToken,
            EngineError::StalePage { found: 1, current: 2 },
            EngineError::Deadline { what: name() },
            EngineError::Stopping,
        ]
    }

    #[test]
    fn every_reason_is_documented_with_its_code() {
        let document = include_str!("../../../../docs/errors.md");
        let mut reasons: Vec<&str> = errors().iter().map(EngineError::reason).collect();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), errors().len(), "one error of each reason");
        for error in errors() {
            let reason = format!("`{}`", error.reason());
            let rows = document.lines().filter(|line| line.starts_with('|'));
            let row = rows.clone().find(|line| line.contains(&reason));
            let row = row.unwrap_or_else(|| panic!("{reason} is not in docs/errors.md"));
            let as_read = row.contains("as the read failed");
            let code = format!("{:?}", code(error.kind()));
            let squeezed = row.replace('_', "").to_lowercase();
            assert!(
                as_read || squeezed.contains(&format!("`{}`", code.to_lowercase())),
                "{row}: {code}"
            );
        }
    }

    #[test]
    fn texts_fit_into_headers() {
        let long = "\u{e9}".repeat(5000);
        let status = invalid("names[0]", &long, &call());
        assert!(status.message().len() <= TEXT_BYTES);
        assert!(status.message().ends_with(" ..."));
    }
}
