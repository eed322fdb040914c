"""The client, for code without asyncio."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from . import _tpad
from ._errors import TpadError
from ._keys import BlockKey
from ._model import Model, ModelSummary, _Sources, model_of
from ._tpad import Block, Mask, Pending, Prefetch, Tensor

Key = BlockKey | tuple[str | int, int, int, int]
"""What names an expert at a layer: (tier, group, expert, layer)."""

Device = str | int | None
"""Where blocks are wanted: None or "cpu", "cuda", "cuda:1", 1, or a torch.device."""

TierSet = Sequence[str | int] | str | dict[str, str | int] | None
"""Which tiers are meant: None for the model's default, ids, a set's name, or {"up_to": id}."""


class Named(Protocol):
    """What has the name of a model."""

    @property
    def name(self) -> str: ...


def name_of(model: Named | str) -> str:
    """A model's name."""
    return model if isinstance(model, str) else model.name


def address_of(address: str | None) -> str:
    """Where to connect when somebody says so or nobody does."""
    return address or os.environ.get("TPAD_ADDR") or _tpad.default_address()


def read_model(said: dict[str, Any]) -> Model:
    """A model, of what the native half says."""
    sources = said["sources"]
    known = sources if isinstance(sources, TpadError) else _Sources(sources)
    return model_of(said, said["config"], known)


class Client:
    """A connection to one daemon; make it with :func:`tpad.connect`.

    It may be used from several threads at once, and reconnects by itself. Waiting releases the
    GIL, and Ctrl-C ends it. A process that was forked from one with a client gets
    :class:`FailedPrecondition` from every call: connect anew there.

    ``timeout`` is in seconds everywhere; a call that takes longer raises
    :class:`DeadlineExceeded`. Without one, the client's own ``timeout`` holds, and without that
    the daemon's memory is waited for during a minute and its replies for as long as they come.
    """

    def __init__(self, native: _tpad.Connection) -> None:
        self._native = native

    @property
    def address(self) -> str:
        """The daemon's address."""
        return self._native.address()

    @property
    def handoff(self) -> bool:
        """Whether blocks are the daemon's own memory."""
        return self._native.why_no_handoff() is None

    @property
    def why_no_handoff(self) -> str | None:
        """Why they are not; None where they are."""
        return self._native.why_no_handoff()

    @property
    def devices(self) -> list[str]:
        """The GPUs whose memory the daemon hands over, by UUID."""
        said = self._native.handoff()
        return list(said["devices"]) if said else []

    @property
    def lease_bytes(self) -> int | None:
        """Bytes of the daemon's memory that this client may hold; None without handoff."""
        said = self._native.handoff()
        return said["lease_bytes"] if said else None

    def close(self) -> None:
        """Closes the connection. Blocks that are held stay valid until they are let go of."""
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._native.closed():
            return "<tpad.Client, closed>"
        try:
            return f"<tpad.Client of {self.address}, with{'' if self.handoff else 'out'} handoff>"
        except TpadError:
            return "<tpad.Client of another process>"

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The daemon's status: the document of ``tpactl status --json``."""
        return self._native.status(timeout)

    def models(self, *, timeout: float | None = None) -> list[ModelSummary]:
        """The models that the daemon is configured with, served or not."""
        return [ModelSummary._of(said) for said in self._native.models(timeout)]

    def model(self, name: str | None = None, *, timeout: float | None = None) -> Model:
        """One model with its tiers, files and the lookup of its experts.

        Without a name, the only model of the daemon. NotFound for a name that it does not have,
        or if there is not exactly one.
        """
        if name is None:
            name = only(self.models(timeout=timeout))
        return read_model(self._native.describe(name, timeout))

    def files(self, model: Named | str, *, timeout: float | None = None) -> list[str]:
        """The names of the checkpoint's small files: ``config.json``, the tokenizer's."""
        return list(self._native.describe(name_of(model), timeout)["files"])

    def file(self, model: Named | str, name: str, *, timeout: float | None = None) -> bytes:
        """One of them. NotFound lists those that there are."""
        return self._native.file(name_of(model), name, timeout)

    def expert(
        self,
        model: Named | str,
        tier: str | int,
        group: int,
        expert: int,
        layer: int,
        *,
        device: Device = None,
        timeout: float | None = None,
    ) -> Block:
        """One expert at one layer.

        The daemon's own memory where it is on this machine, in microseconds when it was had
        before and is still there; one received buffer otherwise: ``block.held`` says which.
        With a ``device`` its tensors are in that GPU's memory, where the daemon keeps them;
        GpuError where it does not. NotFound lists what there is.
        """
        return self._native.expert(name_of(model), tier, group, expert, layer, device, timeout)

    def experts(
        self,
        model: Named | str,
        keys: Iterable[Key],
        *,
        device: Device = None,
        timeout: float | None = None,
    ) -> list[Block]:
        """Several experts, in the order in which they were asked for, read together.

        Raises for the first that cannot be had, and then none is held.
        """
        return self._native.experts(name_of(model), keys, device, timeout)

    def begin_experts(
        self,
        model: Named | str,
        keys: Iterable[Key],
        *,
        device: Device = None,
        timeout: float | None = None,
    ) -> Pending:
        """Asks for experts as :meth:`experts` does and returns at once: they come while the worker
        computes, and ``wait()`` of what is returned gives them. ``timeout`` runs from here."""
        return self._native.begin_experts(name_of(model), keys, device, timeout)

    def router(
        self,
        model: Named | str,
        tier: str | int,
        layer: int,
        *,
        device: Device = None,
        timeout: float | None = None,
    ) -> Block:
        """A tier's router heads at a layer. Rows of the weight are the tier's experts, in order of
        groups and experts: ``[experts, hidden]``."""
        return self._native.router(name_of(model), tier, layer, device, timeout)

    def dense(
        self,
        model: Named | str,
        names: Iterable[str] | None = None,
        *,
        device: Device = None,
        timeout: float | None = None,
    ) -> dict[str, Tensor]:
        """Dense tensors by name, all of them without names. Each has a lease of its own, which
        ends with it; where the daemon's bounds for leases are reached, the rest is received."""
        wanted = None if names is None else list(names)
        return self._native.dense(name_of(model), wanted, device, timeout)

    def prefetch(self, model: Named | str, keys: Iterable[Key]) -> Prefetch:
        """Has the daemon bring experts to its host memory, and does not wait for it. A guess: it
        is read after everything that somebody waits for, and pushes out nothing that is needed.
        Errors are raised by ``wait()`` of what is returned."""
        return self._native.prefetch(name_of(model), keys)

    def expect_experts(
        self, model: Named | str, keys: Iterable[Key], *, device: Device
    ) -> bool:
        """Tells the daemon which experts are likely to be asked for on a GPU next, in this order,
        and returns at once. They are copied there while nothing that somebody waits for is on its
        way, as far as nothing has to go that is worth more. None is held: ask for what is needed
        once that is known; what is under way by then is not copied again.

        Each call takes the place of the one before, whose experts are given up as far as they are
        not there; without keys it only gives up. True if the daemon was told, False where it hands
        over no memory of that GPU."""
        return _tpad.expect(self._native, name_of(model), keys, device)

    def mask(
        self,
        model: Named | str,
        tier_set: TierSet = None,
        *,
        resident: Literal["hbm", "dram", "nvme", "object_store"] | None = None,
        layers: Iterable[int] | None = None,
        sources: bool = True,
        timeout: float | None = None,
    ) -> Mask:
        """Which experts a router may pick now. ``resident`` asks as well which blocks of ``layers``
        (all by default) are at that level or a faster one."""
        wanted = None if layers is None else list(layers)
        return _tpad.mask(
            self._native, name_of(model), tier_set, resident, wanted, sources, timeout
        )

    def watch(
        self, model: Named | str, tier_set: TierSet = None, *, sources: bool = True
    ) -> MaskWatch:
        """The mask now, and again whenever it changes: an iterator without an end, unless the
        daemon drains."""
        return MaskWatch(_tpad.watch(self._native, name_of(model), tier_set, sources))


class MaskWatch:
    """A mask that is followed: an iterator, and a context manager that ends it.

    While there is no mask (the model is loading, nothing is left of the set) it waits, and
    :attr:`missing` says why.
    """

    def __init__(self, native: _tpad.Watch) -> None:
        self._native = native
        self.missing: tuple[str, str] | None = None
        """Why there is no mask for now, as (reason, message)."""

    def __iter__(self) -> Iterator[Mask]:
        return self

    def __next__(self) -> Mask:
        while True:
            event = self._native.next()
            if event is None:
                raise StopIteration
            if isinstance(event, Mask):
                self.missing = None
                return event
            self.missing = event

    def close(self) -> None:
        """Ends the watch."""
        self._native.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def only(models: list[ModelSummary]) -> str:
    """The name of the only model."""
    from ._errors import NotFound

    if len(models) != 1:
        there = ", ".join(model.name for model in models) or "none"
        raise NotFound(f"the daemon does not have one model but {len(models)}: {there}; name one")
    return models[0].name


def connect(
    address: str | None = None,
    *,
    handoff: Literal["auto", "required", "off"] = "auto",
    handoff_socket: str | os.PathLike[str] | None = None,
    worker: str | None = None,
    timeout: float | None = None,
    connect_timeout: float = 5.0,
    verify: bool = True,
) -> Client:
    """Connects to a daemon.

    Args:
        address: ``unix:///PATH``, ``http://HOST:PORT`` or ``https://HOST:PORT``. By default
            ``TPAD_ADDR`` of the environment, and without that the socket where this user's or the
            system's daemon listens.
        handoff: ``"auto"``: blocks are the daemon's own memory where its address is a Unix socket
            and it hands memory over, and received otherwise. ``"required"``: Unavailable where it
            does not. ``"off"``: received always.
        handoff_socket: the daemon's handoff socket, where it is not beside the other by its
            default name.
        worker: what operators see of this worker beside its process id.
        timeout: seconds that each call may take; see :class:`Client`.
        connect_timeout: seconds that connecting may take.
        verify: whether received blocks are checked against their digests.

    Raises:
        Disconnected: nobody answers there.
        InvalidArgument: the address is none.
    """
    socket = None if handoff_socket is None else os.fspath(handoff_socket)
    native = _tpad.connect(
        address_of(address), handoff, socket, worker, timeout, connect_timeout, verify
    )
    return Client(native)
