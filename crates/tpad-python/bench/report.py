"""What the benchmark says at its end: a table for people and the goals."""

from __future__ import annotations


def gb(count: float) -> str:
    """Bytes in GB."""
    return f"{count / 1e9:.3f} GB"


def goals(results: dict) -> list[dict]:
    """Each goal of the issue with what was measured, as far as its sections ran."""
    decode = {row["system"]: row for row in results.get("decode", {}).get("systems", [])}
    made = []

    def goal(name: str, measured: float | None, wanted: float, at_least: bool) -> None:
        if measured is not None:
            met = measured >= wanted if at_least else measured <= wanted
            made.append({"goal": name, "measured": measured, "wanted": wanted, "met": met})

    def rate(system: str) -> float | None:
        return decode.get(system, {}).get("tokens_per_second")

    tpad, offload, lru, floor = map(rate, ("tpad", "offload", "pinned LRU", "resident"))
    if tpad and offload:
        goal("tokens/s of tpad over accelerate's offload", tpad / offload, 5.0, True)
    if tpad and lru:
        goal("tokens/s of tpad over the hand-written LRU", tpad / lru, 0.95, True)
    if tpad and floor:
        copied = decode["tpad"]["missed_bytes_per_token"] / results["decode"]["copy_rate"]
        bound = copied + decode["resident"]["mean_seconds_per_token"]
        measured = decode["tpad"]["mean_seconds_per_token"] / bound
        goal("time per token over missed/copy rate + resident", measured, 1.3, False)
    pair = results.get("pair", {})
    if pair.get("own_bytes"):
        own = pair["own_bytes"]
        goal(
            "GPU memory of the second worker over its own need",
            pair["second_worker_bytes"] / own,
            1.1,
            False,
        )
    restart = results.get("restart", {})
    fresh = restart.get("fresh_load_seconds")
    if fresh and restart.get("first_token_seconds"):
        goal(
            "first token of a restarted worker over a fresh load",
            restart["first_token_seconds"] / fresh,
            0.1,
            False,
        )
    return made


def table(results: dict) -> str:
    """The results in lines."""
    lines = [results["machine"], results["shape_in_words"], ""]
    decode = results.get("decode", {})
    if decode:
        lines.append(
            f"plain pinned copy: {decode['copy_rate'] / 1e9:.2f} GB/s, the median of "
            f"{len(decode['copy_rates'])} before the rounds"
        )
        lines.append(f"{'system':<24}{'tokens/s':>10}{'ms/token':>10}{'missed/token':>15}  notes")
        for row in decode["systems"]:
            if "tokens_per_second" not in row:
                lines.append(f"{row['system']:<24} failed: {row['error']}")
                continue
            note = decode["notes"].get(row["system"], "")
            lines.append(
                f"{row['system']:<24}{row['tokens_per_second']:>10.2f}"
                f"{row['seconds_per_token'] * 1e3:>10.2f}"
                f"{gb(row['missed_bytes_per_token']):>15}  {note}"
            )
        lines.append(
            f"largest difference of logits from the first system's: {decode['logits_differ']}"
        )
    for section in ("pair", "restart"):
        if results.get(section):
            lines.append(f"{section}: {results[section]}")
    lines.append("")
    for goal in results["goals"]:
        lines.append(
            f"{'met   ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['measured']:.3f} "
            f"(wanted {goal['wanted']})"
        )
    for name, error in results["failed"].items():
        lines.append(f"FAILED section {name}: {error.strip().splitlines()[-1]}")
    lines.append(f"seconds by section: { {k: round(v, 1) for k, v in results['seconds'].items()} }")
    return "\n".join(lines)
