"""Exceptions: one class for each thing that a caller can do about it."""

from __future__ import annotations

from collections.abc import Mapping


class TpadError(Exception):
    """What went wrong, with what the daemon said about it.

    Attributes:
        kind: what a caller can do about it: ``"not_found"``, ``"unavailable"`` and the like.
        code: the gRPC code's number, where the daemon answered.
        reason: a constant that programs compare, such as ``"TIER_NOT_FOUND"``; may be empty.
        metadata: what the daemon says besides: the names of fields, keys, its request id.
        field: the field of the request that is wrong, where it is one.
        resource: what it is about, as the daemon names it: the keys that failed.
        retry_after: seconds after which trying again helps, where the daemon says that it does.
        remedy: what helps, in a sentence.
    """

    kind = "internal"
    remedy = "report a defect, with the daemon's log lines of the request id in `metadata`"

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self.field = self.metadata.get("field")
        self.resource = self.metadata.get("keys")
        if remedy is not None:
            self.remedy = remedy

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NotFound(TpadError, LookupError):
    """No such model, tier, group, expert, layer, tensor or file; the text lists what there is."""

    kind = "not_found"
    remedy = "ask for something that exists: the message lists what does"


class InvalidArgument(TpadError, ValueError):
    """The request makes no sense as it stands."""

    kind = "invalid_argument"
    remedy = "correct the request"


class FailedPrecondition(TpadError):
    """The checkpoint, the configuration or this process's state does not allow it."""

    kind = "failed_precondition"
    remedy = "change the state first: the message says which"


class ResourceExhausted(TpadError):
    """A bound is reached: of memory, of leases, of requests."""

    kind = "resource_exhausted"
    remedy = "release what is held, ask for less at a time, or raise the bound in the configuration"


class Unavailable(TpadError):
    """The model is loading, its store fails, or the daemon is draining."""

    kind = "unavailable"
    remedy = "try again later, or another daemon now"


class Disconnected(Unavailable, ConnectionError):
    """Nobody answers, or the connection broke."""

    kind = "disconnected"
    remedy = "check that the daemon runs and that the address is its own"


class DeadlineExceeded(TpadError, TimeoutError):
    """It took longer than the timeout."""

    kind = "deadline_exceeded"
    remedy = "allow more time, or ask for less"


class DataLoss(TpadError):
    """Bytes in the store are missing, or not what the manifest promises."""

    kind = "data_loss"
    remedy = "repair or import the checkpoint again: `tpactl manifest check` finds what is wrong"


class PermissionDenied(TpadError, PermissionError):
    """Credentials or this user do not suffice."""

    kind = "denied"
    remedy = "correct the credentials, or ask from the daemon's own machine as its user"


class GpuError(FailedPrecondition):
    """A GPU is not there, not handed over, or failed in this process."""

    kind = "gpu"
    remedy = "see docs/gpu.md: the daemon hands over the devices that `python -m tpad` lists"


class Cancelled(TpadError):
    """It was cancelled."""

    kind = "cancelled"
    remedy = "ask again"


_KINDS = {
    kind.kind: kind
    for kind in (
        NotFound,
        InvalidArgument,
        FailedPrecondition,
        ResourceExhausted,
        Unavailable,
        Disconnected,
        DeadlineExceeded,
        DataLoss,
        PermissionDenied,
        GpuError,
        Cancelled,
    )
}

for _class in (TpadError, *_KINDS.values()):
    # As people import them.
    _class.__module__ = "tpad"


def build(kind: str, message: str, **details: object) -> TpadError:
    """The exception of a kind, for the native half."""
    error = _KINDS.get(kind, TpadError)(message, **details)  # type: ignore[arg-type]
    return error
