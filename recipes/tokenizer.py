"""Stage 0, the tokenizer: `python recipes/tokenizer.py --preset nano`.

In: a preset with a shape. Out: WORK/tokenizer, the text files of a checkpoint. Merges are learned on the
wording of problems, never on the words whose letters are counted. A preset with a base checkpoint brings its
own tokenizer.
"""

from deepfast.train.commands import Run, already_made, run_recipe
from deepfast.train.stage import Stage
from deepfast.train.tokenizer import train_tokenizer, write_tokenizer
from deepfast.train.wording import wording
from deepfast.types import UsageError


def main(run: Run) -> None:
    """Writes WORK/tokenizer."""
    shape = run.preset.shape
    if shape is None:
        raise UsageError(
            f"preset {run.preset.name} takes the tokenizer of {run.preset.base}. Begin with cold_start."
        )
    stage = Stage(run.work, "tokenizer")
    if already_made(stage):
        return
    write_tokenizer(
        train_tokenizer(wording(), shape.vocab_size), stage.directory, shape.max_position_embeddings
    )
    print(f"{shape.vocab_size:,} tokens; written to {stage.directory}")


if __name__ == "__main__":
    run_recipe(main, __doc__)
