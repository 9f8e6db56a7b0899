"""Deepfast beside llama.cpp on the CPU: `python benchmarks/vs_llama_cpp.py` (with the extra `bench`).

In: nothing (it makes Qwen3 with random weights in the true shapes, as a Hugging Face directory for us and
as GGUF quantised by llama.cpp itself, in a cache directory), or a checkpoint. Both use the same threads and
4.5 bits for each weight (q4, Q4_0), packed before by `deepfast quantize` and by llama.cpp, each in a
process of its own that waits while another measures; samples alternate. llama.cpp without and with flash
attention, at depths also with K/V in q8_0; ours with K/V in f16 and int8; a setting less than half as fast
as its engine's best in an undisturbed round is given up, and said. Out: every sample, with the share of the
machine that others used; medians, ratios of the better settings, and fractions of the measured memory
bandwidth and int8 peak. --json: the last line is one object. Does not know: quality.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from clock import QUIET, wait_for_quiet
from full_size import add_model_options, model_directory
from ratios import MEASURES, OURS, THEIRS, Samples, best, engine_of, fractions, medians, summary

from deepfast.backend.machine import available_cpus, free_memory
from deepfast.cli.bench import products_per_token, weight_bytes_read
from deepfast.config import ENV_ISA, EngineConfig, ModelConfig, kv_bytes_per_token
from deepfast.model.shapes import weight_bytes

HERE = Path(__file__).resolve().parent
QUICK_S = 240.0  # no round begins later than this after the start of --quick,
LAST_S = 25.0  # and this later no sample: a round that is not whole does not count
GIVEN_UP = 0.5  # of the speed of the engine's best setting
NEIGHBOUR = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"
DEFAULT_KV = EngineConfig().kv


class Measure(NamedTuple):
    """What one sample is: an order for a child; how many rounds; are K/V formats compared?"""

    order: dict[str, Any]
    rounds: int
    deep: bool = False


def plan(quick: bool, noisy: bool) -> dict[str, Measure]:
    """The measures of a run, in the order of their running."""

    def generate(depth: int, sequences: int, tokens: int) -> dict[str, Any]:
        return {"do": "generate", "depth": depth, "sequences": sequences, "tokens": tokens}

    rounds, few = (3, 3) if quick else (7, 5)
    measures = {
        "generate_0": Measure(generate(0, 1, 24), rounds),
        "prompt_512": Measure({"do": "prompt", "tokens": 512}, few),
        "batch_16": Measure(generate(0, 16, 12 if quick else 24), few),
        "batch_4": Measure(generate(0, 4, 16 if quick else 24), few),
        "generate_4096": Measure(generate(4096, 1, 12 if quick else 16), few, True),
        "generate_16384": Measure(generate(16384, 1, 10), few, True),
        "prompt_4096": Measure({"do": "prompt", "tokens": 4096}, 3, True),
        "noisy_generate_0": Measure(generate(0, 1, 12), rounds),
    }
    left_out = {"generate_16384", "prompt_4096"} if quick else set()
    left_out |= set() if noisy else {"noisy_generate_0"}
    return {name: measure for name, measure in measures.items() if name not in left_out}


def settings_of(measure: Measure) -> list[str]:
    """Names of what is compared, ours and theirs in turn."""
    if not measure.deep:
        return [f"{OURS}, {DEFAULT_KV}", f"{THEIRS}, f16", f"{THEIRS}, f16, flash"]
    ours = [f"{OURS}, {kv}" for kv in ("f16", "q8")]
    theirs = [f"{THEIRS}, f16", f"{THEIRS}, f16, flash", f"{THEIRS}, q8_0, flash"]
    names = [
        name for pair in zip(theirs, [*ours, *[""] * 3], strict=False) for name in reversed(pair) if name
    ]
    return names


class Child:
    """A process with one engine in one setting."""

    def __init__(self, name: str, settings: dict[str, Any], isa: str | None) -> None:
        self.name = name
        command = [sys.executable, str(HERE / "child.py"), json.dumps(settings)]
        environment = {**os.environ, **({ENV_ISA: isa} if isa else {})}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.loaded = self._answer()

    def do(self, **order: Any) -> dict[str, Any]:
        """Give an order and wait for what came out."""
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with code {self._process.wait()}; its errors are above.")
        return dict(json.loads(line))

    def close(self) -> None:
        """End it."""
        self._process.communicate()


class Run:
    """Children by setting, made when they are first needed, and what was measured so far."""

    def __init__(
        self, args: argparse.Namespace, path: Path, file: Path, measures: dict[str, Measure], end: float
    ) -> None:
        self._args, self._packed, self._file, self._plan = args, packed_of(path), file, measures
        self._children: dict[str, Child] = {}
        self._end = end
        self.config = ModelConfig.from_hf(json.loads((path / "config.json").read_text()))
        self.samples: dict[str, Any] = {"start": {}, "probes": [], "facts": {}, "measures": {}}
        self.given_up: dict[str, list[str]] = {}  # measure -> settings that were too slow to go on

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            child.close()

    def _make(self, name: str, depths: list[int]) -> Child:
        engine, kv, *flash = name.split(", ")
        settings = {
            "engine": engine,
            "model": str(self._packed if engine == OURS else self._file),
            "threads": self._args.threads,
            "context": max(depths) + 512,
            "room": sum(depths) + max(depths) + 4096,
            "kv": kv,
            "flash": bool(flash),
        }
        return Child(name, settings, self._args.isa if engine == OURS else None)

    def _child(self, name: str) -> Child:
        if name not in self._children:
            orders = [measure.order for measure in self._plan.values() if name in settings_of(measure)]
            depths = [order.get("depth", order["tokens"]) for order in orders]
            self._children[name] = self._make(name, depths)
        return self._children[name]

    @property
    def is_over(self) -> bool:
        """Is the time of a quick run over?"""
        return time.monotonic() > self._end

    def start(self) -> None:
        """Load time and peak memory: fresh processes, a context of 4,096, a prompt and some tokens."""
        for name in (f"{OURS}, {DEFAULT_KV}", f"{THEIRS}, f16"):
            child = self._make(name, [4096])
            child.do(do="prompt", tokens=512, seed=1)
            peak = child.do(do="generate", depth=0, sequences=1, tokens=16, seed=1)["peak_mib"]
            child.close()
            sample = child.loaded | {"peak_mib": peak}
            self.samples["start"].setdefault(name, []).append(sample)
            loaded, first = sample["load_s"], sample["first_token_s"]
            print(
                f"{name}: loaded {loaded:.2f} s, first token {first:.2f} s, peak {peak:.0f} MiB", flush=True
            )

    def probe(self) -> None:
        """What the machine allows at this moment."""
        found = self._child(f"{OURS}, {DEFAULT_KV}").do(do="probe")
        self.samples["probes"].append(found)
        gigabytes, giga = found["bandwidth"] / 1e9, found["int8_peak"] / 1e9
        print(
            f"machine: reads {gigabytes:.1f} GB/s, {giga:.0f} G int8 products/s; {_others(found)}", flush=True
        )

    def round(self, name: str, number: int) -> None:
        """One round of one measure; before the first a short one that warms up and reaches the depth."""
        measure = self._plan[name]
        samples = self.samples["measures"].setdefault(name, {n: [] for n in settings_of(measure)})
        settings = [n for n in samples if n not in self.given_up.get(name, ())]
        for setting in settings:
            if number == 1 and measure.order["do"] == "generate":
                self._take(setting, measure.order | {"tokens": 2, "seed": 0})
        with neighbour() if name.startswith("noisy") else nullcontext():
            if not name.startswith("noisy"):
                wait_for_quiet(1 if self._args.quick else 5)
            taken = {setting: self._take(setting, measure.order | {"seed": number}) for setting in settings}
        for setting, sample in taken.items():
            samples[setting].append(sample)
        print(round_line(name, number, settings, samples), flush=True)
        self._give_up(name, settings, samples)

    def _take(self, setting: str, order: dict[str, Any]) -> dict[str, Any]:
        if time.monotonic() > self._end + LAST_S:
            raise TimeoutError
        return self._child(setting).do(**order)

    def _give_up(self, name: str, settings: list[str], samples: Samples) -> None:
        """Leave settings out that are far from their engine's best, judged in a round nobody disturbed."""
        middle, last = medians(samples), [samples[setting][-1] for setting in settings]
        if any(sample["others"] > QUIET for sample in last):
            return
        for setting in settings:
            rivals = [middle[n] for n in settings if engine_of(n) == engine_of(setting)]
            if middle[setting] < GIVEN_UP * max(rivals):
                self.given_up.setdefault(name, []).append(setting)
                print(f"{name}: {setting} is given up at {middle[setting]:.2f} tok/s")

    def facts(self) -> None:
        """Note what ran in every child."""
        self.samples["facts"] = {name: child.do(do="facts") for name, child in self._children.items()}

    def machine(self) -> dict[str, float]:
        """The medians of all probes."""
        names = ("bandwidth", "int8_peak")
        return {name: statistics.median(probe[name] for probe in self.samples["probes"]) for name in names}

    def limits(self) -> dict[str, Any]:
        """For each measure and engine: the best setting's median speed as fractions of the machine."""
        found: dict[str, Any] = {}
        for name, samples in self.samples["measures"].items():
            order, middle = self._plan[name].order, medians(samples)
            for engine in (OURS, THEIRS):
                if setting := best(samples, engine):
                    kind = cost_of(self.config, order, setting.split(", ")[1])
                    found.setdefault(name, {})[engine] = fractions(middle[setting], *kind, self.machine())
        return found


def packed_of(path: Path) -> Path:
    """The checkpoint in q4 as `deepfast quantize` writes it, made where it is missing."""
    packed = path.with_name(f"{path.name}-q4")
    if not packed.exists():
        from deepfast.backend.cpu import CpuBackend
        from deepfast.model.packed import write_packed
        from deepfast.model.weights import Checkpoint

        write_packed(Checkpoint.open(path), CpuBackend(available_cpus()), "q4", packed)
    return packed


def take_samples(run: Run, measures: dict[str, Measure], starts: int) -> None:
    """Round after round, so that every measure spreads over the whole run; at least one probe."""
    for number in range(1, max(measure.rounds for measure in measures.values()) + 1):
        if number <= starts:
            run.start()
        run.probe()
        for name, measure in measures.items():
            if number <= measure.rounds and not run.is_over:
                with suppress(TimeoutError):
                    run.round(name, number)
        if run.is_over:
            print("the time is over")
            break


def cost_of(config: ModelConfig, order: dict[str, Any], kv: str) -> tuple[float, float]:
    """Bytes that one token reads and products that it takes; a prompt reads next to nothing per token."""
    products, stored = float(products_per_token(config)), weight_bytes(config, "q4")
    if order["do"] == "prompt":
        return weight_bytes_read(config, stored, order["tokens"]) / order["tokens"], products
    sequences, positions = order["sequences"], order["depth"] + order["tokens"] / 2
    weights = weight_bytes_read(config, stored, sequences) / sequences
    if kv == "q8_0":  # llama.cpp's: groups of 32 bytes with a scale of two
        position = kv_bytes_per_token(config, "f16") / 2 * 34 / 32
    else:
        position = kv_bytes_per_token(config, kv)
    return weights + positions * position, products + config.vocab_size * config.hidden_size


class neighbour:
    """`with neighbour():` a process that burns one processor."""

    def __enter__(self) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
        time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def _others(sample: dict[str, Any]) -> str:
    return f"others {100 * sample['others']:.0f} %"


def round_line(name: str, number: int, settings: list[str], samples: Samples) -> str:
    """One round for people."""
    shown = [(setting, samples[setting][-1]) for setting in settings]
    parts = [f"{setting} {sample['tok_s']:.2f} ({_others(sample)})" for setting, sample in shown]
    return f"{name} round {number}, tok/s: " + "; ".join(parts)


def machine_facts() -> dict[str, Any]:
    """What ran, on what, when."""
    cpu, info = platform.processor(), Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(
            line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line
        )
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        cpu, flags = fields.get("model name", cpu), fields.get("flags", "").split()
    else:
        flags = []
    names = ("deepfast", "llama_cpp_python", "gguf", "numpy")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu,
        "vector_flags": [flag for flag in flags if flag.startswith(("avx", "fma", "f16c", "amx"))],
        "processors": available_cpus(),
        "free_bytes": free_memory(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
    }


def print_tables(run: Run, result: dict[str, Any]) -> None:
    """Medians, ratios and fractions for people."""
    print("\nload time and peak memory (context of 4,096 reserved), medians:")
    for name, starts in run.samples["start"].items():
        load, first, peak = (
            statistics.median(s[k] for s in starts) for k in ("load_s", "first_token_s", "peak_mib")
        )
        print(f"  {name:24} loaded {load:6.2f} s, first token {first:6.2f} s, peak {peak:6.0f} MiB")
    print(
        f"\n{'measure':18} {'best of ours':>28} {'best of llama.cpp':>34} {'ratio':>7}  ours of memory, int8"
    )
    for name, chosen in result["best"].items():
        if None in chosen.values():
            continue
        middle, ratio, limits = result["medians"][name], result["ratios"][name], run.limits()[name]
        cells = [f"{chosen[e]} {middle[chosen[e]]:8.2f}" for e in (OURS, THEIRS)]
        share = limits[OURS]
        fraction = f"{share['memory']:.0%}, {share['int8']:.0%}"
        print(f"{name:18} {cells[0]:>28} {cells[1]:>34} {ratio:7.2f}  {fraction}")
    for name, ratios in result["ratios_by_kv"].items():
        if len(ratios) > 1:
            print(f"{name}: " + ", ".join(f"{kv} K/V {ratio:.2f}" for kv, ratio in ratios.items()))


def main() -> None:
    """Make the model if need be, measure, say what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_model_options(parser)
    parser.add_argument("--threads", type=int, default=available_cpus(), help="of both, default %(default)s")
    parser.add_argument("--isa", choices=["avx512", "avx2", "scalar"], help="force our kernel path")
    parser.add_argument("--noisy", action="store_true", help="also beside a process that burns a processor")
    parser.add_argument("--quick", action="store_true", help="less than 5 minutes: no depth of 16,384")
    parser.add_argument("--only", nargs="+", choices=MEASURES, metavar="MEASURE", help=" ".join(MEASURES))
    parser.add_argument("--json", action="store_true", help="the last line of stdout is one JSON object")
    args = parser.parse_args()
    end = time.monotonic() + (QUICK_S if args.quick else float("inf"))
    from random_gguf import gguf_of

    noisy = args.noisy or "noisy_generate_0" in (args.only or ())
    measures = {n: m for n, m in plan(args.quick, noisy).items() if not args.only or n in args.only}
    if not measures:
        parser.error("--quick leaves out what --only names. Drop one of the two.")
    path = model_directory(args)
    with Run(args, path, gguf_of(path), measures, end) as run:
        run.samples |= machine_facts()
        print(
            f"{run.samples['cpu']}, {args.threads} threads; {run.samples['date']}; {run.samples['versions']}"
        )
        take_samples(run, measures, starts=2 if args.quick else 3)
        run.facts()
        result = summary(run.samples["measures"])
        print_tables(run, result)
        if args.json:
            options = {
                key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
            }
            run.samples |= {"options": options, "given_up": run.given_up, "of_machine": run.limits()}
            print(json.dumps(result | {"samples": run.samples}))


if __name__ == "__main__":
    main()
