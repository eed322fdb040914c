"""Notices when a model's published weights become others while a worker runs on them.

Growth, new homes and rollbacks leave what a worker has as it is. A new major does not: its
keys lead to other bytes, and experts of one version under routers of another are nobody's
model. So the worker follows its mask, compares the digests of what it uses with those that
are served, and refuses to go on when they differ.
"""

from __future__ import annotations

import asyncio
import threading

import tpad
import tpad.aio
from tpad import Client

from .errors import ModelChanged

#: How long to wait before a daemon that went away is asked again.
AGAIN = 1.0


def digests(published: tpad.Model, tiers: list[str]) -> dict[str, str | None]:
    """What tells the weights of these tiers, of the dense tensors, and how they route."""
    known = {tier["id"]: tier for tier in published.manifest["tiers"]}
    said = {f"tier {tier}": known.get(tier, {}).get("index", {}).get("digest") for tier in tiers}
    said["the dense tensors"] = (published.manifest.get("dense") or {}).get("digest")
    return said


class Guard:
    """Follows a model in a thread of its own."""

    def __init__(self, client: Client, published: tpad.Model, tiers: list[str]) -> None:
        self.name = published.name
        self.revision = published.revision
        self.expected = digests(published, tiers)
        self.changed: str | None = None
        self._address = client.address
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[None] | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tpad-guard", daemon=True)
        self._thread.start()
        self._ready.wait()

    def check(self) -> None:
        """Raises if the weights are others now."""
        if self.changed is not None:
            raise ModelChanged(self.changed)

    def expect(self, published: tpad.Model, tiers: list[str]) -> None:
        """Other tiers from here on; the dense tensors have to be the same."""
        new = digests(published, tiers)
        self._compare(published.revision, {k: v for k, v in new.items() if k in self.expected})
        self.check()
        self.expected = new

    def close(self) -> None:
        """Ends the thread."""
        if self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(5)

    def _compare(self, revision: int, now: dict[str, str | None]) -> None:
        other = [what for what, digest in now.items() if self.expected[what] != digest]
        if other and self.changed is None:
            self.changed = (
                f"model {self.name} was loaded at revision {self.revision}, and revision "
                f"{revision} has other weights: {', '.join(other)}. Load it again"
            )

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._follow())
        self._ready.set()
        try:
            self._loop.run_until_complete(self._task)
        except asyncio.CancelledError:
            pass
        finally:
            self._loop.close()

    async def _follow(self) -> None:
        while self.changed is None:
            try:
                async with await tpad.aio.connect(self._address, handoff="off") as client:
                    async for mask in await client.watch(self.name, sources=False):
                        if mask.revision != self.revision:
                            await self._look(client)
            except tpad.TpadError:
                # It drains or is away: nothing is fetched meanwhile either.
                pass
            await asyncio.sleep(AGAIN)

    async def _look(self, client: tpad.aio.Client) -> None:
        published = await client.model(self.name)
        now = digests(published, [what[5:] for what in self.expected if what.startswith("tier ")])
        self._compare(published.revision, now)
