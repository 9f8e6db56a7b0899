"""From what a user calls a model to the directory it lies in.

In: nothing (the bundled model) or a path. Out: a directory. Raises ModelError that names what is accepted.
Does not know: file formats, networks (catalog names and hub ids are refused by name).
"""

from __future__ import annotations

from pathlib import Path

from ..types import ModelError

BUNDLED = Path(__file__).resolve().parent.parent / "bundled"
_ACCEPTED = "Give a directory in Hugging Face format, or no model for the bundled one"


def resolve(model: str | None) -> Path:
    """The directory of `model`; None is the bundled model."""
    if model is None:
        if not (BUNDLED / "config.json").exists():
            raise ModelError(
                f"the bundled model is not in {BUNDLED}. Install again, or name a model directory."
            )
        return BUNDLED
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path
    if path.suffix == ".gguf":
        raise ModelError(f"model {model!r}: .gguf files are not supported yet. {_ACCEPTED}.")
    if path.is_file():
        raise ModelError(f"model {model!r} is a file. {_ACCEPTED}.")
    if ":" in model or model.count("/") == 1 and not model.startswith((".", "/", "~")):
        raise ModelError(
            f"model {model!r} is not a directory here, and names of a catalog or hub are not supported yet. "
            f"{_ACCEPTED}."
        )
    raise ModelError(f"model {model!r} was not found. {_ACCEPTED}.")
