"""The model card's numbers: what is measured, in parts that a second start need not repeat.

In: a model directory, the directory of its stages, how many problems. Out: a dictionary that is JSON, which
card_text.py writes down and card_plot.py draws. Every part is kept as soon as it is measured. It knows no
training; `same_tokens` compares with transformers where that is installed.
"""

import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from deepfast.config import EngineConfig
from deepfast.engine.llm import LLM
from deepfast.train import measure
from deepfast.train.measure import MODES, Share, Talk, of
from deepfast.train.problems import HARD, TASKS, Problem, Split, river
from deepfast.train.stage import STAGES, Stage, fingerprint
from deepfast.types import ModelError, SamplingParams, UsageError

Results = dict[str, Any]
SPLITS: tuple[Split, ...] = ("test", "ood")
WEAK = 0.9  # tasks below it show a failure
VERSION = 2  # of what is asked: parts that were measured in another way are measured again
ENGINE = EngineConfig(max_running=64, max_batch_tokens=1024)
"""Measured on two busy cores with the bundled model: 4,439 tokens per second of CPU time with 32 sequences at
once, 5,537 with 64, 5,693 with 128."""
PROMPTS = 12  # of the comparison with transformers


@dataclass(frozen=True)
class Settings:
    """How many problems: `count` for each task, split and mode; a quarter at each budget, a fifth for each
    stage. max_new_tokens: None leaves it to the context."""

    count: int = 100
    seed: int = 0
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"count={self.count} is below 1. Ask for at least one problem of each task.")

    @property
    def at_budget(self) -> int:
        return max(1, self.count // 4)

    @property
    def for_stage(self) -> int:
        return max(1, self.count // 5)


class Place(NamedTuple):
    """Where results are kept between two starts; nowhere when there is no path."""

    path: Path | None
    told: Callable[[str], None]


def measure_card(
    model: Path, stages: Path | None, settings: Settings, place: Place, tasks: Sequence[str] = tuple(TASKS)
) -> Results:
    """Everything for the card. Parts that `place` holds for these weights and settings are taken from it."""
    if stages is not None and not stages.is_dir():
        raise UsageError(f"{stages} is no directory. Give the --work directory of the training recipes.")
    if not list(model.glob("*.safetensors")) or not (model / "config.json").is_file():
        raise ModelError(
            f"{model} holds no config.json with model.safetensors. Give the directory of a checkpoint."
        )
    key = {
        "version": VERSION,
        "settings": asdict(settings),
        "weights": fingerprint(model),
        "tasks": list(tasks),
    }
    kept = _read(place.path)
    results: Results = kept if kept.get("key") == key else {"key": key}
    parts: dict[str, Callable[[LLM], Any]] = {
        "accuracy": lambda llm: _accuracy(llm, settings, tasks),
        "budget": lambda llm: _budget(llm, settings, tasks, results["accuracy"]["longest"]),
        "modes": lambda llm: measure.modes(llm, max(2, settings.count // 4), settings.seed, tasks),
        "refusals": lambda llm: measure.refusals(llm, settings.seed),
    }
    if missing := [name for name in parts if name not in results]:
        with open_model(model, settings) as llm:
            for name in missing:
                _keep(results, name, partial(parts[name], llm), place)
    if "same_tokens" not in results:
        _keep(results, "same_tokens", lambda: same_tokens(model), place)
    _measure_stages(results, stages, settings, tasks, place)
    return results


def open_model(model: Path, settings: Settings) -> LLM:
    """The model in an engine for many short sequences."""
    return LLM(model, config=replace(ENGINE, max_new_tokens=settings.max_new_tokens))


def _keep(results: Results, name: str, part: Callable[[], Any], place: Place) -> None:
    began = time.monotonic()
    results[name] = part()
    seconds = time.monotonic() - began
    results.setdefault("seconds", {})[name] = round(seconds, 1)
    place.told(f"{name}: {seconds:.0f} s")
    if place.path is not None:
        write_json(place.path, results)


def _read(path: Path | None) -> Results:
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, results: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def _accuracy(llm: LLM, settings: Settings, tasks: Sequence[str]) -> Results:
    """Rows, promises, loops, tool calls and failures: all from the same conversations."""
    found = measure.accuracy(llm, tasks, settings.count, settings.seed, SPLITS)
    thoughts = [talk for key, talks in found.items() if key[2] == "think" for talk in talks]
    promised = {}
    if "sum" in tasks:
        promised["sums of numbers up to 6 digits"] = _right(found["sum", "test", "think"])
    if "product" in tasks:
        largest = TASKS["product"].levels[-1]
        talks = _asked(llm, measure.held_out("product", settings.count, settings.seed, level=largest))
        promised["products of 3 by 3 digits"] = _right(talks)
    if "river" in tasks:
        talks = _asked(llm, measure.held_out("river", settings.count, settings.seed, only=river.is_new))
        promised["river crossings, conflicts unseen and a name too"] = _right(talks)
    return {
        "rows": rows_of(found),
        "promises": promised,
        "loops": measure.loops(thoughts),
        "longest": _longest(found),
        "tools": _tools(found),
        "failures": failures(found),
    }


def _asked(llm: LLM, problems: Sequence[Problem]) -> list[Talk]:
    talks = [measure.ask(problem, "think", number) for number, problem in enumerate(problems)]
    measure.play(llm, talks)
    return talks


def _longest(found: Mapping[tuple[str, str, str], Sequence[Talk]]) -> int:
    """Tokens of the longest thought of the problems that the budgets are tried on."""
    chosen = [talks for key, talks in found.items() if key[0] != "tools" and key[1:] == ("test", "think")]
    return max((talk.thought_tokens for talks in chosen for talk in talks), default=0)


def _right(talks: Sequence[Talk]) -> Share:
    return of(talk.right for talk in talks)


def rows_of(found: Mapping[tuple[str, str, str], Sequence[Talk]]) -> list[Results]:
    """One row for each task and split: right answers of each mode, mean tokens of a thought."""
    rows: dict[tuple[str, str], Results] = {}
    for (task, split, mode), talks in found.items():
        row = rows.setdefault((task, split), {"task": task, "split": split})
        row[mode] = _right(talks)
        if mode == "think":
            row["tokens"] = round(sum(t.thought_tokens for t in talks) / max(1, len(talks)), 1)
    return list(rows.values())


def _tools(found: Mapping[tuple[str, str, str], Sequence[Talk]]) -> Results:
    sides: dict[str, list[Talk]] = {split: [] for split in SPLITS}
    for (task, split, _), talks in found.items():
        sides[split] += talks if task == "tools" else []
    every = [talk for talks in sides.values() for talk in talks]
    return {
        "valid calls": Share(sum(t.valid_calls for t in every), sum(t.calls for t in every)),
        "problems with a call": of(t.calls > 0 for t in every),
        "right after the results, held out": of(t.right for t in sides["test"] if t.calls > 0),
        "right after the results, one size larger": of(t.right for t in sides["ood"] if t.calls > 0),
    }


def failures(found: Mapping[tuple[str, str, str], Sequence[Talk]]) -> list[Results]:
    """One wrong answer of each task that thinking leaves below 90 %, held-out problems first."""
    shown = list[Results]()
    for (task, split, mode), talks in found.items():
        if mode != "think" or _right(talks).rate >= WEAK:
            continue
        talk = next(talk for talk in talks if not talk.right)
        assert talk.problem is not None
        last = talk.said[-1] if talk.said else None
        thought = last.reasoning.strip() if last else ""
        shown.append(
            {
                "task": task,
                "split": split,
                "question": talk.problem.question,
                "wanted": talk.problem.answer,
                "thought": ("... " if len(thought) > 300 else "") + thought[-300:],
                "answer": talk.content[:400],
            }  # fmt: skip
        )
    return shown


def _budget(llm: LLM, settings: Settings, tasks: Sequence[str], longest: int) -> Results:
    plain = [task for task in tasks if task != "tools"]
    budgets = measure.budgets_up_to(longest)
    points = measure.budget_curve(llm, plain, settings.at_budget, settings.seed, budgets)
    without = measure.accuracy(llm, plain, settings.at_budget, settings.seed, modes=("no_think",))
    return {
        "points": [{"budget": p.budget, "right": p.right, "tokens": round(p.tokens, 1)} for p in points],
        "no_think": _right([talk for talks in without.values() for talk in talks]),
    }


def _measure_stages(
    results: Results, stages: Path | None, settings: Settings, tasks: Sequence[str], place: Place
) -> None:
    """Accuracy and cost of every finished stage; one whose weights changed is measured again."""
    kept: list[Results] = results.get("stages", [])
    known = {stage["weights"]: stage for stage in kept}
    results["stages"] = []
    for made in (Stage(stages, name) for name in STAGES[1:] if stages is not None):
        if not made.done:
            continue
        began, name = time.monotonic(), made.name
        stage = known.get(fingerprint(made.directory)) or _stage(made.directory, settings, tasks)
        results["stages"].append(stage | {"stage": name, "cost": made.cost()})
        place.told(f"stage {name}: {time.monotonic() - began:.0f} s")
        if place.path is not None:
            write_json(place.path, results)


def _stage(directory: Path, settings: Settings, tasks: Sequence[str]) -> Results:
    with open_model(directory, settings) as llm:
        found = measure.accuracy(llm, tasks, settings.for_stage, settings.seed)
    made: Results = {"weights": fingerprint(directory)}
    for mode in MODES:
        every = [(key[0], talk.right) for key, talks in found.items() if key[2] == mode for talk in talks]
        made[mode] = {"all": of(right for _, right in every)}
        made[mode]["hard"] = of(right for task, right in every if task in HARD)
    return made


# --- the same tokens as transformers ---


def same_tokens(model: Path, prompts: int = PROMPTS, new_tokens: int = 32) -> Share | None:
    """Prompts whose greedy tokens are those of transformers, both in float32; None where it is not installed.

    Quantised weights are compared through the values that they stand for. ModelError when one cannot load.
    """
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        return None
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder)
        write_plain(model, plain)
        config = EngineConfig(kv="f32", speculation=False)
        with LLM(plain, config=config) as llm:
            names = [name for name in TASKS if name != "tools"]
            asked = [measure.held_out(names[n % len(names)], 2, 7)[n % 2].question for n in range(prompts)]
            conversations = [llm.requests.conversation(question, None) for question in asked]
            ids = [list(llm.requests.prompt_ids(c, None, "auto")) for c in conversations]
            params = SamplingParams(temperature=0.0, max_tokens=new_tokens)
            ours = [list(completion.token_ids) for completion in llm.generate(ids, params)]
        theirs = _transformers_tokens(plain, ids, new_tokens)
    return of(_same(a, b) for a, b in zip(ours, theirs, strict=True))


def _same(ours: Sequence[int], theirs: Sequence[int]) -> bool:
    """Equal, apart from an end of turn that one of them leaves out."""
    length = min(len(ours), len(theirs))
    return length > 0 and abs(len(ours) - len(theirs)) <= 1 and list(ours[:length]) == list(theirs[:length])


def _transformers_tokens(plain: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32).eval()
    ends = model.generation_config.eos_token_id
    greedy = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=ends, pad_token_id=0)
    model.generation_config = greedy  # its own settings for sampling would be warned about
    made = []
    with torch.no_grad():
        for prompt in prompts:
            ids = torch.tensor([list(prompt)])
            out = model.generate(ids, attention_mask=torch.ones_like(ids))
            made.append(out[0, len(prompt) :].tolist())
    return made


def write_plain(model: Path, directory: Path) -> None:
    """A copy of a checkpoint with every weight in float32 and no quantisation."""
    from deepfast.model.safetensors import write_safetensors
    from deepfast.model.weights import Checkpoint

    source = Checkpoint.open(model).source
    tensors = {}
    for name in source.names():
        shape = source.shape(name)
        whole = source.vector(name) if len(shape) == 1 else source.matrix(name).rows(0, shape[0])
        tensors[name] = "F32", whole
    write_safetensors(directory / "model.safetensors", tensors)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config.pop("quantization_config", None)
    config |= {"torch_dtype": "float32", "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for file in model.iterdir():
        if file.suffix in (".json", ".jinja", ".txt") and file.name != "config.json":
            if not file.name.endswith(".index.json") and file.name != "card.json":
                (directory / file.name).write_bytes(file.read_bytes())
