"""``python -m tpad [ADDRESS]``: what this would be connected to."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import TpadError, __version__, connect
from ._client import address_of


def main(arguments: list[str] | None = None) -> int:
    """Prints it; 1 where nobody answers."""
    parser = argparse.ArgumentParser(
        prog="python -m tpad", description="Say what a tpad daemon serves, and how to this process."
    )
    parser.add_argument(
        "address",
        nargs="?",
        help="unix:///PATH or http://HOST:PORT; by default TPAD_ADDR, else the default socket",
    )
    parser.add_argument("--version", action="version", version=f"tpad {__version__}")
    address = address_of(parser.parse_args(arguments).address)
    try:
        with connect(address, worker="python -m tpad") as client:
            for line in report(client):
                print(line)
    except TpadError as error:
        print(f"{address}: {error}", file=sys.stderr)
        print(f"remedy: {error.remedy}", file=sys.stderr)
        return 1
    return 0


def report(client: Any) -> list[str]:
    """The lines of it."""
    status = client.status()
    lines = [f"daemon   tpad {status['version']} at {client.address}, this package {__version__}"]
    why = client.why_no_handoff
    if why is None:
        bound = client.lease_bytes
        lines.append(f"handoff  yes: blocks are the daemon's own memory, up to {size(bound)} held")
        devices = ", ".join(client.devices) or "none"
        lines.append(f"devices  {devices}")
    else:
        lines.append(f"handoff  no: {why}")
    for level, facts in levels(status):
        lines.append(f"level    {level}: {facts}")
    for model in client.models():
        if model.state != "serving":
            lines.append(f"model    {model.name}: {model.state}: {model.reason or 'no reason given'}")
            continue
        lines.append(f"model    {model.name}: revision {model.revision}, from {model.root}")
        for tier in client.model(model.name).tiers.values():
            default = " (default)" if tier.id in model.default_tier_set else ""
            skipped = f", skipped: {tier.skipped}" if tier.skipped else ""
            lines.append(
                f"  tier   {tier.id}{default}: {tier.experts} experts at home on "
                f"{tier.placement}, {size(tier.bytes)}{skipped}"
            )
    return lines


def levels(status: dict[str, Any]) -> list[tuple[str, str]]:
    """The levels of a status, with how full they are."""
    found = []
    for device in status["hbm"]["devices"]:
        found.append(("hbm", f"{device.get('name', 'a GPU')} {device.get('uuid', '')}".strip()))
    for level in status["store"]["levels"]:
        usage = level["usage"]
        health = "" if level["health"] == "ok" else f", {level['health']}"
        full = f"{size(usage['bytes'])} of {size(usage['capacity'])}"
        found.append((level["level"], f"{full} in {usage['blocks']} blocks{health}"))
    return found


def size(number: int | None) -> str:
    """Bytes for people."""
    if number is None:
        return "?"
    amount, units = float(number), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while amount >= 1024 and len(units) > 1:
        amount, units = amount / 1024, units[1:]
    return f"{amount:.4g} {units[0]}"


if __name__ == "__main__":
    sys.exit(main())
