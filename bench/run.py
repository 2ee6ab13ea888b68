"""The benchmark: measures, writes one JSON file and prints one table.

Knows nothing about how each subject is measured; those are the files beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench import latency, memory, proxy, throughput
from bench.client import BadReply
from bench.machine import Machine, this_machine
from bench.process import ROOT, ProcessEnded
from bench.setup import Setup, default_models
from bench.table import Part, Row, render

PARTS: Final[Mapping[str, Callable[[Setup], Awaitable[Part]]]] = {
    "throughput": throughput.measure,
    "latency": latency.measure,
    "proxy": proxy.measure,
    "memory": memory.measure,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the arguments ask for; 1 if something could not be measured."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    asked = _parser().parse_args(arguments)
    setup = Setup.of(default_models(), seconds=asked.seconds, rounds=asked.rounds)
    try:
        parts = asyncio.run(_measure(setup, asked.only))
    except (BadReply, ProcessEnded) as error:
        print(f"not measured: {error}", file=sys.stderr)
        return 1
    machine = this_machine()
    today = dt.datetime.now(dt.UTC).date().isoformat()
    command = shlex.join(["sluiceway", "bench", *arguments])
    report = _report(parts, setup, machine, today, command)
    chosen = "" if len(parts) == len(PARTS) else f"-{'-'.join(parts)}"
    target: Path = asked.results / f"{today}-{machine.slug}{chosen}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(_text(parts, setup, machine, today, command))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sluiceway bench", description="Measure the guard.")
    parser.add_argument(
        "--only",
        type=_names,
        default=list(PARTS),
        help=f"some of {','.join(PARTS)}",
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each stretch")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is repeated")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "bench" / "results", help="folder for the JSON"
    )
    return parser


def _names(value: str) -> list[str]:
    names = value.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}")
    return names


async def _measure(setup: Setup, names: Sequence[str]) -> dict[str, Part]:
    parts = {}
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        parts[name] = await PARTS[name](setup)
    return parts


def _report(
    parts: Mapping[str, Part], setup: Setup, machine: Machine, today: str, command: str
) -> dict[str, Any]:
    shared = {"threads": setup.threads, "max_batch_tokens": setup.max_batch_tokens}
    return {
        "date": today,
        "command": command,
        "machine": asdict(machine),
        "setup": {**shared, "seconds": setup.seconds, "rounds": setup.rounds},
        "parts": {
            name: {
                "rows": [_row(row) for row in part.rows],
                "details": part.details,
                "notes": part.notes,
            }
            for name, part in parts.items()
        },
    }


def _row(row: Row) -> dict[str, Any]:
    aim = {"aim": f"{row.aim.direction.value} {row.aim.value}", "met": row.met} if row.aim else {}
    return {
        "what": row.what,
        "ours": row.ours,
        "theirs": row.theirs,
        "unit": row.unit,
        "result": asdict(row.result),
        "result_unit": row.result_unit,
        **aim,
    }


def _text(
    parts: Mapping[str, Part], setup: Setup, machine: Machine, today: str, command: str
) -> str:
    head = (
        f"{today}, {machine.describe()}; model threads {setup.threads}, "
        f"{setup.max_batch_tokens} tokens a batch. `{command}`"
    )
    table = render([row for part in parts.values() for row in part.rows])
    notes = [note for part in parts.values() for note in part.notes]
    return "\n\n".join([head, table, *notes])


if __name__ == "__main__":
    sys.exit(main())
