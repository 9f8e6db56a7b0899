"""A conversation with long thoughts, beside llama-cpp-python: how long until the next turn's first token?

In: one checkpoint for both (random weights of true shapes, 4 bits), threads. The template drops old thoughts,
so what the last turn cached fits only as far as its thought. Both read the same ids; thoughts and answers are
a given text. Ours goes through LLM.stream, from messages to the first token drawn, once the engine has come
to rest after the last turn. llama.cpp goes through Llama.generate, which keeps
the longest common beginning, with its flash attention off and on. Turn by turn, one after the other.
Out: a line for each turn, with the share of the machine that other processes used at the time, and medians of
the turns after the first that were not disturbed by them; with --json, JSON in the last line. Does not know:
quality.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
from clock import QUIET, Clock, wait_for_quiet
from full_size import add_model_options, model_directory
from random_gguf import gguf_of
from replay import ROOM, Player, random_text, replay

from deepfast import LLM, EngineConfig, Message, SamplingParams, Thinking
from deepfast.backend.machine import available_cpus

OPENING, CLOSING = "<think>\n", "\n</think>\n\n"


def our_turn(llm: LLM, player: Player, messages: list[Message], turn: dict[str, Any]) -> dict[str, Any]:
    """Seconds to the first token of a turn, and what the engine says of its cache."""
    prompt = llm.template.encode(messages, enable_thinking=True)
    player.play(turn["reply"], len(prompt))
    params = SamplingParams(seed=1, max_tokens=len(turn["reply"]) + ROOM)
    clock = Clock()
    player.on_first = clock.read
    done = llm.stream(messages, params, Thinking(mode="on", on_loop="ignore")).result()
    assert (done.content, done.reasoning.strip()) == (turn["answer"], turn["thought"]), (
        "the text was not replayed"
    )
    seconds, others = player.first
    return {
        "seconds": seconds,
        "others": others,
        "evaluated": done.usage.prompt_tokens - done.usage.cached_tokens,
        "cache_miss": done.cache_miss,
    }


def come_to_rest(llm: LLM) -> float:
    """Seconds until the engine has nothing left to prepare."""
    began = time.perf_counter()
    while llm.engine.is_busy:
        time.sleep(0.005)
    return time.perf_counter() - began


def their_turn(model: llama_cpp.Llama, prompt: list[int], reply: list[int]) -> dict[str, Any]:
    """Seconds to the first token; then the reply is put into the cache, as if it had been written."""
    before = model.input_ids[: model.n_tokens].tolist()
    kept = next((i for i, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before))
    wait_for_quiet(20)
    clock = Clock()
    tokens = model.generate(prompt, temp=0.6, top_k=20, top_p=0.95, min_p=0.0)
    next(tokens)
    seconds, others = clock.read()
    tokens.close()
    model.eval(reply)
    return {"seconds": seconds, "others": others, "evaluated": len(prompt) - kept}


def converse(llm: LLM, models: dict[str, llama_cpp.Llama], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All turns; for each a dictionary of engines."""
    encode, messages, rows = llm.tokenizer.encode, list[Message](), list[dict[str, Any]]()
    with replay(llm) as player:
        for n in range(args.turns):
            question = random_text(llm.tokenizer, args.question, seed=3 * n)
            thought = random_text(llm.tokenizer, args.thought, seed=3 * n + 1).strip()
            answer = random_text(llm.tokenizer, args.answer, seed=3 * n + 2).strip()
            text = f"{OPENING}{thought}{CLOSING}{answer}<|im_end|>"
            turn = {"thought": thought, "answer": answer, "reply": encode(text, control=True)}
            messages.append(Message("user", question))
            prompt = llm.template.encode(messages, enable_thinking=True)
            row: dict[str, Any] = {"turn": n + 1, "prompt": len(prompt)}
            wait_for_quiet(20)
            row["deepfast"] = our_turn(llm, player, messages, turn)
            row["deepfast"]["rest_seconds"] = come_to_rest(llm)
            for name, model in models.items():
                row[name] = their_turn(model, prompt, turn["reply"])
            messages.append(Message("assistant", answer, thought))
            rows.append(row)
            print(line_of(row, list(models)), flush=True)
    return rows


def line_of(row: dict[str, Any], models: list[str]) -> str:
    """One turn for people."""
    parts = [f"turn {row['turn']}: prompt {row['prompt']:5}"]
    for name in ("deepfast", *models):
        r = row[name]
        parts.append(
            f"{name} {r['seconds']:.3f} s for {r['evaluated']} ids (others {100 * r['others']:.0f} %)"
        )
    ours = row["deepfast"]
    return "; ".join(parts) + f"; cache {ours['cache_miss']}, rest {ours['rest_seconds']:.2f} s"


def main() -> None:
    """Load both engines, hold the conversation, print medians of the undisturbed turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--thought", type=int, default=2000, help="tokens of each thought")
    parser.add_argument("--answer", type=int, default=300, help="tokens of each answer")
    parser.add_argument("--question", type=int, default=40, help="tokens of each question")
    parser.add_argument("--quick", action="store_true", help="3 turns with thoughts of 200 tokens")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.quick:
        args.turns, args.thought = min(args.turns, 3), min(args.thought, 200)
    path, threads = model_directory(args), available_cpus()
    room = args.turns * (args.question + args.answer + 32) + args.thought + ROOM
    context = -(-room // 512) * 512
    file = str(gguf_of(path))
    shared = {"n_ctx": context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
    models = {
        "llama.cpp": llama_cpp.Llama(file, flash_attn=False, **shared),
        "llama.cpp, flash": llama_cpp.Llama(file, flash_attn=True, **shared),
    }
    config = EngineConfig(max_context=context, max_kv_tokens=4 * context, threads=threads)
    with LLM(path, quantize="q4", config=config) as llm:
        rows = converse(llm, models, args)
    later = rows[1:] or rows
    clean = [row for row in later if max(row[name]["others"] for name in ("deepfast", *models)) < QUIET]
    print(f"{len(clean)} of {len(later)} turns after the first were not disturbed by others")
    later = clean or later
    medians = {name: statistics.median(r[name]["seconds"] for r in later) for name in ("deepfast", *models)}
    ratios = {n: statistics.median(r[n]["seconds"] / r["deepfast"]["seconds"] for r in later) for n in models}
    for name, seconds in medians.items():
        print(f"{name:18} {seconds:8.3f} s to the first token, median")
    for name, ratio in ratios.items():
        print(f"{name:18} {ratio:8.2f} times ours, median of the turns' ratios")
    if args.json:
        versions = {"llama_cpp_python": llama_cpp.__version__, "python": sys.version.split()[0]}
        options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        result = {"options": options, "threads": threads, "versions": versions, "turns": rows}
        print(json.dumps(result | {"median_seconds": medians, "median_ratios": ratios}))


if __name__ == "__main__":
    main()
