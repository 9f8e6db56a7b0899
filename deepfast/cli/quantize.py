"""`deepfast quantize`: pack a model's weights once, as well as it can be done, and say what that cost.

In: a model, q4 or q8; texts that say which weights matter, a text on which to compare. Out: a directory that
`-m` opens by memory map; its path on stdout, or with --json one object; sizes, errors, KL divergence and
perplexity on stderr. Does not know: how weights are rounded, what lies in the files.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import BUNDLED_NAME
from ..types import UsageError, as_dict, as_size
from .fetching import locate
from .options import LoadBar, Options, positive
from .terminal import note

if TYPE_CHECKING:
    from ..backend.cpu import CpuBackend
    from ..model.compare import Comparison
    from ..model.hub import Found
    from ..model.importance import Importance
    from ..model.least_error import Format, Rounder
    from ..model.weights import Checkpoint

TOKENS = 16384  # of each kind of text; what more of them adds is small
BYTES_PER_TOKEN = 16  # of a file that are read for each token that is wanted; few tokens are longer

WORST = 5  # matrices that are named in the report
LAYERS_PER_LINE = 6

file = click.Path(path_type=Path)


@click.command()
@click.option(
    "--to", "format", type=click.Choice(["q4", "q8"]), default="q4", show_default=True, help="Format."
)
@click.option(
    "--out", type=file, metavar="DIR", help="Default: MODEL-q4, beside it; here, when it came from a hub."
)
@click.option(
    *("--calibrate", "texts"),
    type=file,
    multiple=True,
    metavar="FILE",
    help="A text that shows which weights matter. May be repeated.",
)
@click.option(
    "--imatrix", type=file, metavar="FILE", help="Keep what --calibrate found; without it: use a kept one."
)
@click.option("--measure", type=file, metavar="FILE", help="Compare with the original on this text.")
@click.option(
    "--tokens", type=positive, default=TOKENS, show_default=True, help="At most so many of each text."
)
@click.option("--plain", is_flag=True, help="Round as --quantize does while loading: quick, a larger error.")
@click.option("--threads", type=positive, metavar="N", help="Worker threads. Default: one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the path.")
@click.argument("model", required=False)
def quantize(model: str | None, as_json: bool, **options: Any) -> None:
    """Pack MODEL's weights once, as they are computed with.

    \b
    deepfast quantize ~/models/Qwen3-4B --to q4
    deepfast quantize ~/models/Qwen3-4B --calibrate chats.txt --measure other-chats.txt
    deepfast run -m ~/models/Qwen3-4B-q4 "How many primes are there below 100?"

    The result is mapped into memory instead of read: it loads in a fraction of a second, and several
    programs share one copy of it. It is a packed form for Deepfast alone; keep the original.

    A good text for --calibrate is what the model will do: whole chats as the model writes them, with
    <|im_start|> and <think>, in your languages and subjects; some ten thousand tokens are enough. The text
    for --measure must be another one.
    """
    report = make(model, options)
    click.echo(json.dumps(report, indent=2) if as_json else report["out"])
    if not as_json:
        for line in lines(report):
            note(line)


def make(model: str | None, options: Options) -> dict[str, Any]:
    """Pack, and everything that is to be said of it; bytes, seconds, nats per token."""
    from ..backend.cpu import CpuBackend
    from ..model.compare import windows
    from ..model.packed import check_target, write_packed
    from ..model.weights import Checkpoint

    format, plain, judge = options["format"], options["plain"], options["measure"]
    if plain and (options["texts"] or options["imatrix"]):
        raise UsageError("--plain does not look at what matters. Drop it, or --calibrate and --imatrix.")
    found = locate(model)
    target = options["out"] or _beside(model, found, format)
    checkpoint, backend = Checkpoint.open(found.path), CpuBackend(options["threads"])
    check_target(checkpoint, target)
    judged = _ids([judge], checkpoint, options["tokens"]) if judge else []
    if judge:
        windows(judged)  # a text too short is refused before minutes of work
    clock = _Clock()
    importance = _importance(checkpoint, backend, options)
    clock.stop("calibrate")
    with LoadBar("packing the weights") as bar, _rounding(format, plain, importance, backend) as prepare:
        count = write_packed(checkpoint, backend, format, target, bar, prepare)
    packed = Checkpoint.open(target)
    clock.stop("pack")
    errors = _errors(checkpoint, packed, backend)
    clock.stop("errors")
    measured = _measure(checkpoint, packed, backend, judged) if judge else None
    clock.stop("measure")
    return {
        "model": model or BUNDLED_NAME,
        "out": str(target),
        "format": format,
        "rule": "plain" if plain else "importance" if importance else "search",
        "calibration_tokens": importance.tokens if importance else 0,
        "bytes": {"original": checkpoint.source.size, "packed": count},
        "errors": errors,
        "measured": as_dict(measured) if measured else None,
        "seconds": clock.seconds,
    }


class _Clock:
    """How long each part took."""

    def __init__(self) -> None:
        """It runs."""
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def stop(self, name: str) -> None:
        """This part ends, the next one begins."""
        now = time.monotonic()
        self.seconds[name], self._began = round(now - self._began, 2), now


def _beside(model: str | None, found: Found, format: str) -> Path:
    """Where the result goes: beside the model, or here when the model has no place of the user's."""
    path = found.path.resolve()  # for its name; a cache's links are opened as they are named
    stem = path.stem if path.is_file() else path.name
    name = BUNDLED_NAME if model is None else found.repo.rpartition("/")[2]
    return Path(f"{name}-{format}") if name else path.with_name(f"{stem}-{format}")


def _rounding(
    format: Format, plain: bool, importance: Importance | None, backend: CpuBackend
) -> contextlib.AbstractContextManager[Rounder | None]:
    """What chooses the codes; None leaves that to the packing itself."""
    from ..model.least_error import Rounder

    if plain:
        return contextlib.nullcontext()
    return Rounder(format, importance.of if importance else None, backend.threads)


def _importance(checkpoint: Checkpoint, backend: CpuBackend, options: Options) -> Importance | None:
    """From texts, or from a file that keeps what texts once said; None when there is neither."""
    from ..model.importance import Importance, calibrate

    kept, texts = options["imatrix"], options["texts"]
    if not texts:
        return Importance.load(kept, checkpoint) if kept else None
    if kept and kept.exists():
        raise UsageError(
            f"--imatrix {kept} is there already. Leave out --calibrate to use it, or name another."
        )
    ids = _ids(texts, checkpoint, options["tokens"])
    with LoadBar(f"running {len(ids):,} tokens") as bar:
        found = calibrate(checkpoint, backend, ids, progress=bar)
    if kept:
        found.save(kept)
    silent = sum(count == 0 for count in found.counts.values())
    if silent:
        note(f"[no token reached {silent} of {len(found.counts)} matrices: all their inputs count the same]")
    return found


def _ids(paths: Sequence[Path], checkpoint: Checkpoint, limit: int) -> list[int]:
    """The first `limit` tokens of these texts together; says when that is not all of them."""
    from ..model.compare import check_ids
    from ..text.tokenizer import Tokenizer

    tokenizer, ids = Tokenizer.of(checkpoint.text), list[int]()
    for path in paths:
        try:
            with path.open("rb") as stream:
                raw = stream.read(limit * BYTES_PER_TOKEN)
                whole = not stream.read(1)
            text = codecs.getincrementaldecoder("utf-8")().decode(raw, final=whole)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}. Give a text file.") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}.") from error
        new = tokenizer.encode(text, control=True)
        if len(ids) + len(new) > limit or not whole:
            note(
                f"[{path}: only its first {min(limit - len(ids), len(new)):,} tokens; --tokens N takes more]"
            )
        ids += new[: limit - len(ids)]
    check_ids(ids, checkpoint.config.vocab_size)
    return ids


def _errors(checkpoint: Checkpoint, packed: Checkpoint, backend: CpuBackend) -> dict[str, Any]:
    """Relative errors: of all weights, by layer, by kind, and the worst matrices."""
    from ..model.compare import kind_of, layer_of, matrix_errors, together

    with LoadBar("comparing the weights") as bar:
        found = matrix_errors(checkpoint, packed, backend, bar)
    worst = sorted(found, key=lambda error: -error.relative)[:WORST]
    return {
        "all": together(found, lambda _: "all")["all"].relative,
        "layers": {name: error.relative for name, error in together(found, layer_of).items()},
        "kinds": {name: error.relative for name, error in together(found, kind_of).items()},
        "worst": {error.name: error.relative for error in worst},
    }


def _measure(
    checkpoint: Checkpoint, packed: Checkpoint, backend: CpuBackend, ids: Sequence[int]
) -> Comparison:
    from ..model.compare import compare, exact_format

    with LoadBar(f"both models read {len(ids):,} tokens") as bar:
        return compare(checkpoint, packed, backend, ids, format=exact_format(checkpoint), progress=bar)


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """The report for people."""
    sizes, errors, found = report["bytes"], report["errors"], report["measured"]
    rules = {
        "plain": "rounded by the plain rule",
        "search": "scales searched for the least error",
        "importance": f"scales searched for what {report['calibration_tokens']:,} tokens show to matter",
    }
    yield (
        f"{as_size(sizes['packed'])} of weights in {report['format']}, from {as_size(sizes['original'])}; "
        f"{rules[report['rule']]}"
    )
    yield f"error of the weights {errors['all']:.2%}: {_shares(errors['kinds'])}"
    layers = list(errors["layers"].items())
    for first in range(0, len(layers), LAYERS_PER_LINE):
        yield f"  {_shares(dict(layers[first : first + LAYERS_PER_LINE]))}"
    name, error = next(iter(errors["worst"].items()))
    yield f"  worst: {name} {error:.2%}"
    if found:
        yield (
            f"KL divergence from the original, nats per token: mean {found['kl_mean']:.5f}, median "
            f"{found['kl_median']:.5f}, 99 % below {found['kl_p99']:.4f}, largest {found['kl_max']:.3f}"
        )
        yield (
            f"perplexity {found['perplexity']:,.4f}, of the original {found['perplexity_original']:,.4f}; "
            f"the likeliest token is the same at {found['same_top']:.2%} of {found['positions']:,} positions "
            f"(windows of {found['window']:,} tokens, {found['stride']:,} apart)"
        )
    seconds = {name: value for name, value in report["seconds"].items() if value >= 0.05}
    if seconds:
        yield ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())


def _shares(errors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {error:.2%}" for name, error in errors.items())
