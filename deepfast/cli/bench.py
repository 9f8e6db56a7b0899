"""`deepfast bench`: how fast a model runs here, beside what the machine's memory would allow.

In: a model. Out: load time, prompt speed, generation speed at several depths and batch sizes (medians), the
measured memory bandwidth and int8 products per second, and each speed as a fraction of its roofline: for
generation, bandwidth over the bytes that a step must read (weights and KV cache); for a prompt, int8 products
over those of its matrices. Ids in, ids out, random prompts, end-of-text ignored: any weights will do.
Does not know: kernels, templates, texts.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from ..config import BLOCK_SIZE, EngineConfig, ModelConfig, kv_bytes_per_token, with_yarn
from ..types import SamplingParams, UsageError
from .fetching import locate
from .options import engine_config, engine_options, open_llm
from .show import idle_expert_parameters
from .terminal import note

if TYPE_CHECKING:
    from ..engine.llm import LLM

PROMPT = 512  # tokens of the prompt-speed test
SHORT = 16  # tokens of the prompt at "depth 0"
DEPTHS = (0, 1024, 4096)
BATCHES = (4, 16)
NEW = 64  # tokens generated in each run
SHORTEST = 64  # positions without which there is nothing to measure


class Plan(NamedTuple):
    """What fits the context: tokens of the prompt test, (depth, batch) pairs, tokens per run, runs."""

    prompt: int
    points: list[tuple[int, int]]
    new: int
    runs: int
    patience_s: float  # a point that took this long is not run again


@click.command()
@engine_options
@click.option("--quick", is_flag=True, help="Fewer points and runs: a rough answer in a few seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def bench(quick: bool, as_json: bool, **options: Any) -> None:
    """Measure speed beside the limit of the machine's memory."""
    from ..backend.cpu import CpuBackend
    from ..backend.machine import available_cpus
    from ..backend.probe import int8_peak, read_bandwidth
    from ..model.weights import Checkpoint

    found = locate(options["model"], quantize=options["quantize"])
    checkpoint, asked = Checkpoint.open(found.path), engine_config(options)
    weights = checkpoint.kept_as(found.quantize)
    config = with_yarn(checkpoint.config, asked.yarn)
    context = min(asked.max_context or config.max_positions, config.max_positions)
    plan = make_plan(context, quick)
    threads = asked.resolve(config, available_cpus()).threads or 1
    note("measuring memory bandwidth and int8 products")
    probe = CpuBackend(threads)
    bandwidth, peak = read_bandwidth(probe), int8_peak(probe)
    settings = EngineConfig(
        kv=asked.kv,
        threads=threads,
        yarn=asked.yarn,
        max_context=max(plan.prompt, *(max(depth, SHORT) + plan.new for depth, _ in plan.points)) + 1,
        max_kv_tokens=_kv_tokens(plan),
        max_running=max(batch for _, batch in plan.points),
    )
    with open_llm(options, settings) as llm:
        report = {
            "model": llm.name,
            "weights": weights,
            "kv": asked.kv,
            "threads": threads,
            "load_s": round(llm.load_seconds, 3),
            "bandwidth_gb_s": round(bandwidth / 1e9, 1),
            "int8_gmac_s": round(peak / 1e9, 1),
            "prompt": _measure_prompt(llm, plan, peak),
            "generation": _measure_generation(llm, plan, settings, bandwidth),
        }
    click.echo(json.dumps(report, indent=2)) if as_json else _print_table(report)


def make_plan(context: int, quick: bool) -> Plan:
    """The points that fit `context`. Raises UsageError when nothing does."""
    if context < SHORTEST:
        raise UsageError(
            f"a context of {context} is too short to measure. Give --context {SHORTEST} or more."
        )
    new = min(16 if quick else NEW, context // 4)
    prompt = min(PROMPT, context - new)
    points = [(depth, 1) for depth in DEPTHS[: 2 if quick else None] if max(depth, SHORT) + new < context]
    points += [(0, batch) for batch in BATCHES[: 1 if quick else None]]
    return Plan(prompt, points, new, runs=3 if quick else 5, patience_s=2.0 if quick else 10.0)


def _kv_tokens(plan: Plan) -> int:
    rows = [batch * (max(depth, SHORT) + plan.new + BLOCK_SIZE) for depth, batch in plan.points]
    return max(*rows, plan.prompt + BLOCK_SIZE)


def _prompts(llm: LLM, batch: int, length: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    top = min(llm.tokenizer.num_ids, llm.config.vocab_size)
    return [[draw.randrange(top) for _ in range(length)] for _ in range(batch)]


def _median(run: Callable[[int], float], plan: Plan) -> tuple[float, int]:
    """The median of run(seed) after one run that warms up, and how many runs it is the median of."""
    start = time.perf_counter()
    results = [run(0)]
    if time.perf_counter() - start < plan.patience_s:
        results = []
    while len(results) < plan.runs and (not results or time.perf_counter() - start < plan.patience_s):
        results.append(run(len(results) + 1))
    return statistics.median(results), len(results)


def _measure_prompt(llm: LLM, plan: Plan, peak: float) -> dict[str, Any]:
    def run(seed: int) -> float:
        done = llm.generate(_prompts(llm, 1, plan.prompt, seed), _params(1, seed))[0]
        return plan.prompt / done.timing.first_token_s

    note(f"prompt of {plan.prompt} tokens")
    speed, runs = _median(run, plan)
    limit = peak / products_per_token(llm.config)
    return {
        "tokens": plan.prompt,
        "tok_s": round(speed, 1),
        "roofline_tok_s": round(limit, 1),
        "fraction": round(speed / limit, 3),
        "runs": runs,
    }


def _measure_generation(
    llm: LLM, plan: Plan, settings: EngineConfig, bandwidth: float
) -> list[dict[str, Any]]:
    rows = []
    for depth, batch in plan.points:
        length = max(depth, SHORT)

        def run(seed: int, length: int = length, batch: int = batch) -> float:
            done = llm.generate(_prompts(llm, batch, length, seed), _params(plan.new, seed))
            first = max(one.timing.first_token_s for one in done)
            return batch * (plan.new - 1) / (max(one.timing.total_s for one in done) - first)

        note(f"generation at depth {depth}, batch {batch}")
        speed, runs = _median(run, plan)
        kv = (length + plan.new / 2) * kv_bytes_per_token(llm.config, settings.kv)
        limit = batch * bandwidth / (weight_bytes_read(llm.config, llm.fit.weights, batch) + batch * kv)
        rows.append(
            {
                "depth": depth,
                "batch": batch,
                "tok_s": round(speed, 1),
                "roofline_tok_s": round(limit, 1),
                "fraction": round(speed / limit, 3),
                "runs": runs,
            }
        )
    return rows


def weight_bytes_read(config: ModelConfig, weights: int, batch: int) -> float:
    """Bytes of `weights` that a step of `batch` tokens reads: no idle experts, no untied embedding table."""
    from ..model.shapes import parameter_count

    total = parameter_count(config)
    unread = idle_expert_parameters(config, batch)
    unread += 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    return weights * (total - unread) / total


def products_per_token(config: ModelConfig) -> int:
    """Products of a prompt's token with the matrices; the vocabulary is for the last token alone."""
    from ..model.shapes import parameter_count

    tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
    return parameter_count(config) - idle_expert_parameters(config, 1) - tables


def _params(new: int, seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=new, seed=seed, ignore_eos=True)


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{report['model']}: {report['weights']} weights, {report['kv']} KV, {report['threads']} threads"
    table = Table(title=title, title_justify="left")
    table.add_column("test")
    for column in ("tok/s", "limit", "of the limit"):
        table.add_column(column, justify="right")
    prompt = report["prompt"]
    rows = [(f"prompt, {prompt['tokens']} tokens", prompt)]
    for row in report["generation"]:
        name = f"generation, depth {row['depth']:,}" + (f", batch {row['batch']}" if row["batch"] > 1 else "")
        rows.append((name, row))
    for name, row in rows:
        table.add_row(name, f"{row['tok_s']:,.1f}", f"{row['roofline_tok_s']:,.1f}", f"{row['fraction']:.0%}")
    console = Console()
    console.print(table)
    console.print(
        f"Loaded in {report['load_s']:.2f} s. Memory reads {report['bandwidth_gb_s']:.1f} GB/s; the limit of "
        "generation is that over the weights and KV cache that a step reads. Int8 arithmetic does "
        f"{report['int8_gmac_s']:,.0f} G products/s; the limit of a prompt is that over the products of its "
        "matrices. A small model lives in the processor's cache and is bound by the fixed cost of a step "
        "instead; a batch is bound by arithmetic.",
        highlight=False,
    )
