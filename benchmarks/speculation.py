"""What drafts from a sequence's own past are worth: `python benchmarks/speculation.py --model-dir DIR`.

In: a checkpoint (random weights of true shapes do), packed as q4. Given texts are replayed (replay.py), so
that drafts are accepted as often as in real thoughts: two that repeat themselves, one that does not. Out:
tokens per second with speculation on and off, in alternating runs, every run printed with the share of the
machine that others used; the median ratio of the pairs they left alone; and before that the cost of a step
with several rows of one sequence, relative to one row. With --json, JSON in the last line. Does not know:
quality.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from clock import QUIET, Clock, wait_for_quiet
from full_size import add_model_options, model_directory
from replay import ROOM, Player, replay
from thoughts import TEXTS

from deepfast import LLM, EngineConfig, Message, SamplingParams, Thinking
from deepfast.backend.base import Batch
from deepfast.config import BLOCK_SIZE
from deepfast.model.decoder import Decoder

ROWS, DEPTHS = (1, 2, 3, 5, 9), (0, 2048)
OPENING, CLOSING = "<think>\n", "\n</think>\n\nDone.<|im_end|>"


def step_costs(decoder: Decoder, depth: int, runs: int) -> dict[int, dict[str, float]]:
    """For each number of rows: milliseconds of a step (median), and the median ratio to a step of one row
    that ran just before."""
    rng = np.random.default_rng(0)
    blocks = list(range(-(-(depth + max(ROWS)) // BLOCK_SIZE)))
    cache = decoder.new_cache(len(blocks), "f16")

    def step(computed: int, rows: int, wanted: int) -> float:
        ids = rng.integers(0, decoder.config.vocab_size, rows).tolist()
        began = time.perf_counter()
        decoder.forward(Batch.build([(ids, computed, blocks)], [wanted]), cache)
        return time.perf_counter() - began

    wait_for_quiet(20)
    for at in range(0, depth, 512):
        step(at, min(512, depth - at), 0)
    pairs = {n: [(step(depth, 1, 1), step(depth, n, n)) for _ in range(runs)] for n in ROWS}
    return {
        n: {
            "ms": 1000 * statistics.median(several for _, several in pair),
            "ratio": statistics.median(several / one for one, several in pair),
        }
        for n, pair in pairs.items()
    }


def run(llm: LLM, player: Player, question: str, text: str, limit: int) -> dict[str, float]:
    """Replay a thought once: tokens per second after the first, tokens per forward pass."""
    messages = [Message("user", question)]
    text = llm.tokenizer.decode(llm.tokenizer.encode(text)[:limit])
    reply = llm.tokenizer.encode(OPENING + text + CLOSING, control=True)
    player.play(reply, len(llm.template.encode(messages, enable_thinking=True)))
    params = SamplingParams(seed=1, max_tokens=len(reply) + ROOM)
    clock = Clock()
    done = llm.chat(messages, params, Thinking(mode="on", on_loop="ignore"))
    assert done.reasoning.strip() == text.strip(), "the text was not replayed"
    _, others = clock.read()
    tokens = len(done.token_ids)
    seconds = done.timing.total_s - done.timing.first_token_s
    return {
        "speed": (tokens - 1) / seconds,
        "per_step": tokens / player.steps,
        "tokens": tokens,
        "others": others,
    }


def compare(llm: LLM, names: list[str], runs: int, limit: int) -> dict[str, Any]:
    """Every text, speculation on and off in turns, until `runs` pairs were not disturbed by others (three
    times as many are tried); the order changes from pair to pair. One engine does both: two copies of the
    weights lie differently in memory, which alone is worth some per cent."""
    results: dict[str, Any] = {}
    settings = llm.requests.settings
    with replay(llm) as player:
        for name in names:
            question, text = TEXTS[name]
            samples: list[dict[str, Any]] = []
            clean: list[dict[str, Any]] = []
            while len(clean) < runs and len(samples) < 3 * runs:
                wait_for_quiet(20)
                order = ("on", "off") if len(samples) % 2 else ("off", "on")
                pair = {}
                for key in order:
                    llm.requests.settings = replace(settings, speculation=key == "on")
                    pair[key] = run(llm, player, question, text, limit)
                samples.append(pair)
                if max(pair["on"]["others"], pair["off"]["others"]) < QUIET:
                    clean.append(pair)
                print(line_of(name, pair), flush=True)
            counted = clean or samples
            ratio = statistics.median(pair["on"]["speed"] / pair["off"]["speed"] for pair in counted)
            print(f"{name:8} median ratio {ratio:.2f} of {len(clean)} undisturbed pairs", flush=True)
            results[name] = {"samples": samples, "undisturbed": len(clean), "median_ratio": ratio}
    return results


def line_of(name: str, pair: dict[str, Any]) -> str:
    """One pair of runs for people."""
    on, off = pair["on"], pair["off"]
    return (
        f"{name:8} {on['tokens']:4} tokens: on {on['speed']:5.1f}/s ({on['per_step']:.2f} a step, others "
        f"{100 * on['others']:.0f} %), off {off['speed']:5.1f}/s (others {100 * off['others']:.0f} %), ratio "
        f" {on['speed'] / off['speed']:.2f}"
    )


def main() -> None:
    """Measure the steps, then the texts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs for each text")
    parser.add_argument("--text", choices=[*TEXTS], help="only this one")
    parser.add_argument("--quick", action="store_true", help="one pair, 150 tokens of each text")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    runs, limit = (1, 150) if args.quick else (args.runs, 2048)
    path = model_directory(args)
    costs = {}
    with LLM(path, quantize="q4", config=EngineConfig(max_context=4096, max_kv_tokens=4096)) as llm:
        for depth in () if args.text else DEPTHS:
            costs[depth] = step_costs(llm.engine.runner.decoder, depth, 3 if args.quick else 15)
            shown = ", ".join(f"{n}: {c['ratio']:.2f} ({c['ms']:.1f} ms)" for n, c in costs[depth].items())
            print(f"rows of a step at {depth:4} tokens, cost relative to one: {shown}", flush=True)
        texts = compare(llm, [args.text] if args.text else [*TEXTS], runs, limit)
    if args.json:
        options = {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()}
        print(json.dumps({"options": options, "step_costs": costs, "texts": texts}))


if __name__ == "__main__":
    main()
