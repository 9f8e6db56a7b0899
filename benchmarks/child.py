"""One engine in a process of its own, so that load time and peak memory are its own: `python child.py JSON`.

In: its settings as the only argument; orders as lines of JSON on stdin, until it ends. Out: for each a line
of JSON on stdout: first how long it took to load, then samples, each with the share of the machine that
others used meanwhile. Waits for the next order without using the processor. Does not know: what is compared.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")


def peak_mib() -> float:
    """Resident memory at its highest, mapped files included. On Linux not from getrusage, which counts
    what the process was before its program was loaded."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def load(settings: dict[str, Any]) -> Any:
    """The engine that the settings name, imported now: that is a part of loading."""
    model, threads, context = settings["model"], settings["threads"], settings["context"]
    if settings["engine"] == "deepfast":
        from our_engine import Engine

        return Engine(Path(model), threads, context, settings["room"], settings["kv"])
    from llama_engine import Engine as LlamaEngine

    return LlamaEngine(Path(model), threads, context, settings["flash"], settings["kv"])


def answer(engine: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Do one order."""
    from clock import Clock

    clock, kind = Clock(), order.pop("do")
    if kind == "prompt":
        result = {"tok_s": order["tokens"] / engine.prompt(**order)}
    elif kind == "generate":
        result = {"tok_s": engine.generate(**order)}
    elif kind == "probe":
        result = engine.probe()
    else:
        assert kind == "facts", kind
        result = engine.facts() | {"depth_reached": getattr(engine, "how", None)}
    return result | {"others": clock.read()[1], "peak_mib": round(peak_mib(), 1)}


def main() -> None:
    """Load, say so, obey."""
    began = time.perf_counter()
    out = os.fdopen(os.dup(1), "w", buffering=1)  # whatever a library prints goes to stderr
    os.dup2(2, 1)
    engine = load(json.loads(sys.argv[1]))
    loaded = time.perf_counter() - began
    engine.prompt(64, seed=1)
    print(json.dumps({"load_s": loaded, "first_token_s": time.perf_counter() - began}), file=out)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line))), file=out)


if __name__ == "__main__":
    main()
