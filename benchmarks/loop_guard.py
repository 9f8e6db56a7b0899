"""What the loop guard costs, catches and lets pass: `python benchmarks/loop_guard.py [--text-dir DIR]`.

In: the thoughts of tests/looping_thoughts.py and tests/sane_thoughts.py, a directory with tokenizer.json (the
bundled model's by default) and, with --text-dir, text files of yours (.txt .md .py .json .jsonl .gz) that
should not loop: every file, or every record of JSON, is one thought. Out: microseconds of processor time per
token (mean and worst), the tokens until the alarm for every kind of loop, the alarms on sane texts and how
near they came. Does not know: the engine.
"""

import argparse
import gzip
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from looping_thoughts import loops  # noqa: E402
from sane_thoughts import endless, sane  # noqa: E402

from deepfast.text.tokenizer import Tokenizer  # noqa: E402
from deepfast.thinking.loops import ALARM, LoopGuard  # noqa: E402

SUFFIXES = {".txt", ".md", ".py", ".json", ".jsonl", ".gz"}


def watch(tokens: list[int]) -> tuple[int, str, int]:
    """Tokens until the alarm (0: none), its reason, the highest level."""
    guard, top = LoopGuard(), 0
    for count, token in enumerate(tokens, 1):
        reason = guard.observe(token)
        top = max(top, guard.level)
        if reason:
            return count, reason, top
    return 0, "", top


def strings(value: object) -> Iterator[str]:
    """Every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def texts_of(path: Path) -> Iterator[str]:
    """The text of a file; of JSON, each record's strings."""
    raw = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    text, kind = raw.decode(errors="replace"), Path(path.stem if path.suffix == ".gz" else path).suffix
    if kind not in {".json", ".jsonl"}:
        yield text
        return
    records = json.loads(text) if kind == ".json" else map(json.loads, filter(None, text.split("\n")))
    for record in records if not isinstance(records, dict) else [records]:
        yield "\n".join(strings(record))


def show_cost(samples: list[list[int]]) -> None:
    """Mean over whole texts; worst of single tokens, read from a finer loop."""
    clock, spent, count, single = time.thread_time_ns, 0, 0, []
    for tokens in samples:
        guard = LoopGuard()
        start = clock()
        for token in tokens:
            guard.observe(token)
        spent += clock() - start
        count += len(tokens)
        guard = LoopGuard()
        for token in tokens:
            start = clock()
            guard.observe(token)
            single.append(clock() - start)
    single.sort()
    high = single[int(len(single) * 0.9999)]
    print(
        f"cost: {spent / count / 1e3:.2f} us per token over {count} tokens; 1 in 10,000 takes more than "
        f"{high / 1e3:.0f} us, the worst {single[-1] / 1e3:.0f} us"
    )


def show_loops(tokenizer: Tokenizer) -> None:
    """One line for every kind of loop."""
    delays: defaultdict[str, list[int]] = defaultdict(list)
    missed: defaultdict[str, int] = defaultdict(int)
    for case in loops():
        before = tokenizer.encode(case.prefix)
        count, _, _ = watch(before + tokenizer.encode(case.loop))
        if count > len(before):
            delays[case.kind].append(count - len(before))
        else:
            missed[case.kind] += 1
    everything = [delay for found in delays.values() for delay in found]
    for kind, found in [*delays.items(), ("all", everything)]:
        bad = missed[kind] if kind != "all" else sum(missed.values())
        middle = statistics.median(found)
        print(f"loops, {kind:22} {len(found):4} caught, {bad} not; {middle:5.0f} tokens, worst {max(found)}")


def show_sane(what: str, samples: dict[str, list[int]]) -> None:
    """How many alarms, and the texts that came nearest to one."""
    seen = {name: watch(tokens) for name, tokens in samples.items()}
    alarms = {name: (count, reason) for name, (count, reason, _) in seen.items() if count}
    total = sum(map(len, samples.values()))
    print(f"{what}: {len(alarms)} alarms on {len(seen)} texts, {total} tokens")
    for name, (count, reason) in alarms.items():
        print(f"    {name}: {reason} after {count} of {len(samples[name])} tokens")
    nearest = sorted(((top, name) for name, (_, _, top) in seen.items()), reverse=True)[:3]
    print("    nearest:", ", ".join(f"{name} {top / ALARM:.2f}" for top, name in nearest))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "deepfast" / "bundled")
    parser.add_argument("--text-dir", type=Path, action="append", default=[])
    options = parser.parse_args()
    tokenizer = Tokenizer.from_dir(options.tokenizer)
    usual = {name: tokenizer.encode(text) for name, text in sane()}
    show_cost([tokens for name, tokens in usual.items() if name.startswith("joined")])
    show_loops(tokenizer)
    show_sane("sane thoughts", usual)
    show_sane("perhaps wanted", {name: tokenizer.encode(text) for name, text in endless()})
    for folder in options.text_dir:
        found = {}
        for path in sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES and p.is_file()):
            for number, text in enumerate(texts_of(path)):
                found[f"{path.name} {number}"] = tokenizer.encode(text)
        if found:
            show_sane(str(folder), found)


if __name__ == "__main__":
    main()
