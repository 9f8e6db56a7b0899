"""Many clients at once on a real `deepfast serve`: some leave early, some read slowly, all must be answered.

In: how many clients, for how long. Out: a table (or JSON): how every request ended, time to the first token
(p50, p99) of those that waited for it, the server's memory over time, and whether all KV blocks are free
afterwards. Leaves with 1 when a request ended in no defined state, a block is lost, memory grew, or the
server did not leave with 0. Does not know: how the server works.

    python benchmarks/serve_load.py --clients 64 --seconds 60
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

KINDS = {"stream": 5, "whole": 3, "leaves early": 3, "leaves at once": 1, "reads slowly": 2}  # how often
SLOW_READ = 0.05  # seconds between two reads of at most SLOW_BYTES
SLOW_BYTES = 256
SMALL_BUFFER = 2048  # bytes that the system takes from the server ahead of a slow reader
SETTLE_SECONDS = 10.0
MAX_GROWTH = 0.10  # of memory, from the middle third to the last one
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"


@dataclass
class Results:
    """What all clients saw."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)  # (kind, how it ended)
    first: list[float] = field(default_factory=list)  # seconds to the first token of a stream
    broken: list[str] = field(default_factory=list)
    tokens: int = 0
    memory: list[float] = field(default_factory=list)  # bytes, one for each look


@dataclass
class Reply:
    """An HTTP reply that is being read."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def pieces(self, slow: bool = False) -> AsyncIterator[bytes]:
        """Its body. Raises EOFError when it ends before its end."""
        if "content-length" in self.headers:
            yield await self.reader.readexactly(int(self.headers["content-length"]))
            return
        while length := int(await self.reader.readline() or b"x", 16):
            left = length
            while left:
                piece = await self.reader.readexactly(min(left, SLOW_BYTES) if slow else left)
                left -= len(piece)
                yield piece
                if slow:
                    await asyncio.sleep(SLOW_READ)
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)


@asynccontextmanager
async def post(port: int, body: dict[str, Any], slow: bool = False) -> AsyncIterator[Reply]:
    """Send a request; leaving the block early hangs up."""
    raw = json.dumps(body).encode()
    sock = socket.socket()
    if slow:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=SMALL_BUFFER if slow else 2**16)
    try:
        head = f"{HEAD}Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        writer.write(head.encode() + raw)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        yield Reply(int(lines[0].split()[1]), headers, reader)
    finally:
        writer.transport.abort()


def question(rng: random.Random) -> dict[str, Any]:
    """A request of some kind that the bundled model was made for."""
    a, b = rng.randrange(10, 99), rng.randrange(10, 99)
    asked = rng.choice([f"What is {a} * {b}?", f"What is {a} + {b}?", f"Sort: {b}, {a}, {a + b}, 5"])
    body: dict[str, Any] = {"messages": [{"role": "user", "content": asked}]}
    if rng.random() < 0.3:
        body["enable_thinking"] = False
    elif rng.random() < 0.2:
        body["thinking_budget"] = rng.randrange(64)
    if rng.random() < 0.2:
        turns = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
        body["messages"] = turns * rng.randrange(1, 8) + body["messages"]
    return body


async def ask(port: int, kind: str, rng: random.Random, results: Results) -> str:
    """One request of that kind; returns how it ended."""
    body = question(rng)
    began = time.perf_counter()
    if kind == "whole":
        async with post(port, body) as reply:
            data = json.loads(b"".join([piece async for piece in reply.pieces()]))
            if reply.status != 200:
                return await _refused(reply)
            results.tokens += data["usage"]["completion_tokens"]
            return str(data["choices"][0]["finish_reason"])
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    leaves_after = rng.randrange(1, 12) if kind == "leaves early" else None
    slow = kind == "reads slowly"
    text, count, first = b"", 0, 0.0
    async with post(port, body, slow) as reply:
        if reply.status != 200:
            return await _refused(reply)
        async for piece in reply.pieces(slow):
            text += piece
            count += 1
            if not first and (b'"content":"' in piece or b'"reasoning' in piece) and count > 1:
                first = time.perf_counter() - began
                if not slow:
                    results.first.append(first)
            if leaves_after is not None and count >= leaves_after:
                return "left"
    return _end(text, results)


def _end(text: bytes, results: Results) -> str:
    """How a whole stream says that it ended."""
    events = [line[6:] for line in text.decode().split("\n") if line.startswith("data: ")]
    if events[-1] != "[DONE]":
        return f"broken: ends with {events[-1][:80]}"
    chunks = [json.loads(item) for item in events[:-1]]
    ends = [choice.get("finish_reason") for chunk in chunks for choice in chunk.get("choices", ())]
    usage = chunks[-1].get("usage")
    if usage is None or not any(ends):
        return f"broken: last chunk {events[-2][:200]}"
    results.tokens += usage["completion_tokens"]
    return str(next(end for end in ends if end))


async def _refused(reply: Reply) -> str:
    if reply.status == 429 and "retry-after" in reply.headers:
        await asyncio.sleep(min(float(reply.headers["retry-after"]), 1.0))
        return "429"
    return f"broken: status {reply.status}"


async def leave_at_once(port: int, rng: random.Random) -> str:
    """Send a request and hang up a moment later, before its answer or in the middle of it."""

    async def begin() -> None:
        async with post(port, question(rng) | {"stream": True}) as reply:
            async for _ in reply.pieces():
                pass

    try:
        await asyncio.wait_for(begin(), rng.random() * 0.05)
    except TimeoutError:
        return "left"
    return "stop"


async def client(number: int, port: int, until: float, results: Results) -> None:
    """Ask until the time is over."""
    rng = random.Random(number)
    while time.perf_counter() < until:
        kind = rng.choices([*KINDS], [*KINDS.values()])[0]
        try:
            if kind == "leaves at once":
                end = await leave_at_once(port, rng)
            else:
                end = await asyncio.wait_for(ask(port, kind, rng, results), 120)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            end = f"broken: {type(error).__name__}: {error}"
        if end.startswith("broken"):
            results.broken.append(f"{kind}: {end}")
            end = "broken"
        results.ends[kind, end] += 1


async def numbers(port: int) -> dict[str, float]:
    """The gauges of GET /metrics that matter here."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    names = (
        "deepfast_active|deepfast_batch|deepfast_queue|deepfast_kv_blocks_used|process_resident_memory_bytes"
    )
    found = re.findall(rf"^({names})(?:{{[^}}]*}})? (\S+)$", text, re.M)
    return {name: float(value) for name, value in found}


async def watch(port: int, until: float, results: Results) -> None:
    """Look at the server's memory all the time."""
    while time.perf_counter() < until:
        results.memory.append((await numbers(port))["process_resident_memory_bytes"])
        await asyncio.sleep(0.25)


async def settled(port: int) -> dict[str, float]:
    """The last numbers, as soon as nothing runs and no block is owned, or after SETTLE_SECONDS."""
    until = time.perf_counter() + SETTLE_SECONDS
    while True:
        found = await numbers(port)
        busy = {name: value for name, value in found.items() if name.startswith("deepfast") and value}
        if not busy or time.perf_counter() > until:
            return busy
        await asyncio.sleep(0.05)


async def load(clients: int, seconds: float, arguments: list[str]) -> dict[str, Any]:
    """Start a server, load it, look at it, stop it."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "deepfast.cli.main",
        "serve",
        "--port",
        "0",
        "--no-store",
        *arguments,
    ]
    server = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert server.stderr is not None
    results = Results()
    try:
        port = 0
        while not port:
            line = (await server.stderr.readline()).decode()
            assert line, "the server did not start"
            found = re.search(r"ready: http://127\.0\.0\.1:(\d+)", line)
            port = int(found[1]) if found else 0
        logs = asyncio.create_task(server.stderr.read())  # a full pipe would stop it
        until = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(watch(port, until, results))
            for number in range(clients):
                group.create_task(client(number, port, until, results))
        busy = await settled(port)
        server.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(server.wait(), 30)
        errors = [line for line in (await logs).decode().splitlines() if '"level": "error"' in line]
    finally:
        if server.returncode is None:
            server.kill()
    return report(clients, seconds, results, busy, code, errors)


def report(
    clients: int, seconds: float, results: Results, busy: dict[str, float], code: int, errors: list[str]
) -> dict[str, Any]:
    """All of it as one object; `good` says whether every promise was kept."""
    third = max(len(results.memory) // 3, 1)
    middle, last = (
        statistics.median(part) for part in (results.memory[third : 2 * third + 1], results.memory[-third:])
    )
    growth = last / middle - 1
    first = sorted(results.first)
    kinds = {kind: {end: n for (k, end), n in sorted(results.ends.items()) if k == kind} for kind in KINDS}
    return {
        "clients": clients,
        "seconds": seconds,
        "requests": sum(results.ends.values()),
        "tokens_per_s": round(results.tokens / seconds, 1),
        "ends": kinds,
        "first_token_s": {f"p{p}": round(first[(len(first) - 1) * p // 100], 4) for p in (50, 90, 99)}
        if first
        else {},
        "memory_mb": {"middle": round(middle / 1e6, 1), "last": round(last / 1e6, 1)},
        "memory_growth": round(growth, 4),
        "still_busy": busy,
        "exit_code": code,
        "broken": results.broken[:10],
        "server_errors": errors[:10],
        "good": not (results.broken or busy or code or errors) and growth < MAX_GROWTH,
    }


def show(found: dict[str, Any]) -> None:
    """The report as a table."""
    print(f"{found['clients']} clients, {found['seconds']:g} s: {found['requests']} requests")
    for kind, ends in found["ends"].items():
        print(f"  {kind:16}" + "   ".join(f"{end} {count}" for end, count in ends.items()))
    times = "   ".join(f"{name} {1000 * value:.0f} ms" for name, value in found["first_token_s"].items())
    memory = found["memory_mb"]
    print(f"  {'first token':16}{times}")
    print(f"  {'whole answers':16}{found['tokens_per_s']:.0f} tokens/s")
    print(f"  {'memory':16}{memory['middle']} MB, then {memory['last']} MB ({found['memory_growth']:+.1%})")
    print(f"  {'afterwards':16}{found['still_busy'] or 'all blocks free, nothing runs'}")
    print(f"  {'SIGTERM':16}left with {found['exit_code']}")
    for line in [*found["broken"], *found["server_errors"]]:
        print(f"  ! {line}")
    print("good" if found["good"] else "NOT GOOD")


def main() -> None:
    """Parse, load, show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    options, rest = parser.parse_known_args()  # what is left goes to `deepfast serve`
    found = asyncio.run(load(options.clients, options.seconds, rest))
    print(json.dumps(found)) if options.json else show(found)
    sys.exit(0 if found["good"] else 1)


if __name__ == "__main__":
    main()
