"""The same client for asyncio: ``client = await tpad.aio.connect(...)``.

Cancelling a task that awaits a call ends the call, and what it has got so far is given back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Literal, Self

from . import _tpad
from ._client import Device, Key, Named, TierSet, address_of, name_of, only, read_model
from ._model import Model, ModelSummary
from ._tpad import Block, Mask, Tensor

__all__ = ["Client", "MaskWatch", "Prefetch", "connect"]


async def _call(start: Callable[..., Any], *arguments: object) -> Any:
    """Awaits one of the native half's calls."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: object, error: BaseException | None) -> None:
        # One that was cancelled drops what came, and with it the leases.
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def done(result: object, error: BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            # The loop was closed meanwhile: nobody waits.
            pass

    task = start(*arguments, done=done)
    try:
        return await future
    except asyncio.CancelledError:
        task.cancel()
        raise


class Client:
    """As :class:`tpad.Client`, with coroutines for what may take time."""

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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """As :meth:`tpad.Client.status`."""
        status: dict[str, Any] = await _call(self._native.status, timeout)
        return status

    async def models(self, *, timeout: float | None = None) -> list[ModelSummary]:
        """As :meth:`tpad.Client.models`."""
        return [ModelSummary._of(said) for said in await _call(self._native.models, timeout)]

    async def model(self, name: str | None = None, *, timeout: float | None = None) -> Model:
        """As :meth:`tpad.Client.model`."""
        if name is None:
            name = only(await self.models(timeout=timeout))
        return read_model(await _call(self._native.describe, name, timeout))

    async def files(self, model: Named | str, *, timeout: float | None = None) -> list[str]:
        """As :meth:`tpad.Client.files`."""
        said = await _call(self._native.describe, name_of(model), timeout)
        return list(said["files"])

    async def file(self, model: Named | str, name: str, *, timeout: float | None = None) -> bytes:
        """As :meth:`tpad.Client.file`."""
        content: bytes = await _call(self._native.file, name_of(model), name, timeout)
        return content

    async def expert(
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
        """As :meth:`tpad.Client.expert`. What is held without a message is there without a turn of
        the event loop."""
        name = name_of(model)
        if device is None:
            held = self._native.hold(name, tier, group, expert, layer)
            if held is not None:
                return held
        block: Block = await _call(
            self._native.expert, name, tier, group, expert, layer, device, timeout
        )
        return block

    async def experts(
        self,
        model: Named | str,
        keys: Iterable[Key],
        *,
        device: Device = None,
        timeout: float | None = None,
    ) -> list[Block]:
        """As :meth:`tpad.Client.experts`."""
        blocks: list[Block] = await _call(
            self._native.experts, name_of(model), keys, device, timeout
        )
        return blocks

    async def router(
        self,
        model: Named | str,
        tier: str | int,
        layer: int,
        *,
        device: Device = None,
        timeout: float | None = None,
    ) -> Block:
        """As :meth:`tpad.Client.router`."""
        block: Block = await _call(
            self._native.router, name_of(model), tier, layer, device, timeout
        )
        return block

    async def dense(
        self,
        model: Named | str,
        names: Iterable[str] | None = None,
        *,
        device: Device = None,
        timeout: float | None = None,
    ) -> dict[str, Tensor]:
        """As :meth:`tpad.Client.dense`."""
        wanted = None if names is None else list(names)
        tensors: dict[str, Tensor] = await _call(
            self._native.dense, name_of(model), wanted, device, timeout
        )
        return tensors

    def expect_experts(self, model: Named | str, keys: Iterable[Key], *, device: Device) -> bool:
        """As :meth:`tpad.Client.expect_experts`: nothing is waited for."""
        return _tpad.expect(self._native, name_of(model), keys, device)

    def prefetch(self, model: Named | str, keys: Iterable[Key]) -> Prefetch:
        """As :meth:`tpad.Client.prefetch`: nothing is waited for."""
        return Prefetch(self._native.prefetch(name_of(model), keys))

    async def mask(
        self,
        model: Named | str,
        tier_set: TierSet = None,
        *,
        resident: Literal["hbm", "dram", "nvme", "object_store"] | None = None,
        layers: Iterable[int] | None = None,
        sources: bool = True,
        timeout: float | None = None,
    ) -> Mask:
        """As :meth:`tpad.Client.mask`."""
        wanted = None if layers is None else list(layers)
        arguments = (name_of(model), tier_set, resident, wanted, sources, timeout)
        mask: Mask = await _call(_tpad.mask, self._native, *arguments)
        return mask

    async def watch(
        self, model: Named | str, tier_set: TierSet = None, *, sources: bool = True
    ) -> MaskWatch:
        """As :meth:`tpad.Client.watch`, for ``async for``."""
        return MaskWatch(
            await _call(_tpad.watch, self._native, name_of(model), tier_set, sources)
        )


class Prefetch:
    """As :class:`tpad.Prefetch`."""

    def __init__(self, native: _tpad.Prefetch) -> None:
        self._native = native

    def cancel(self) -> None:
        """Ends it. What the daemon is reading arrives."""
        self._native.cancel()

    def done(self) -> bool:
        """Whether it is over."""
        return self._native.done()

    async def wait(self, timeout: float | None = None) -> dict[str, Any]:
        """As :meth:`tpad.Prefetch.wait`."""
        outcome: dict[str, Any] = await _call(self._native.wait, timeout)
        return outcome


class MaskWatch:
    """As :class:`tpad.MaskWatch`, for ``async for`` and ``async with``."""

    def __init__(self, native: _tpad.Watch) -> None:
        self._native = native
        self.missing: tuple[str, str] | None = None
        """Why there is no mask for now, as (reason, message)."""

    def __aiter__(self) -> AsyncIterator[Mask]:
        return self

    async def __anext__(self) -> Mask:
        while True:
            event = await _call(self._native.next)
            if event is None:
                raise StopAsyncIteration
            if isinstance(event, Mask):
                self.missing = None
                return event
            self.missing = event

    def close(self) -> None:
        """Ends the watch."""
        self._native.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def connect(
    address: str | None = None,
    *,
    handoff: Literal["auto", "required", "off"] = "auto",
    handoff_socket: str | os.PathLike[str] | None = None,
    worker: str | None = None,
    timeout: float | None = None,
    connect_timeout: float = 5.0,
    verify: bool = True,
) -> Client:
    """As :func:`tpad.connect`."""
    socket = None if handoff_socket is None else os.fspath(handoff_socket)
    arguments = (address_of(address), handoff, socket, worker, timeout, connect_timeout, verify)
    return Client(await _call(_tpad.connect, *arguments))
