"""Stage 1, the long-thought cold start: `python recipes/cold_start.py --preset nano`.

In: WORK/pretrain, or the base checkpoint of the preset. Out: WORK/cold_start, a model that thinks in the chat
format. Few tokens on purpose: it learns the pattern, and leaves room to reinforcement (Qwen3 report, section
4.1).
"""

from deepfast.model.hub import resolve
from deepfast.train.commands import Run, already_made, run_recipe
from deepfast.train.documents import Writer
from deepfast.train.stage import Stage


def main(run: Run) -> None:
    """Trains on thoughts of the solvers and writes WORK/cold_start."""
    from deepfast.train.supervised import start_from, train

    preset, stage = run.preset, Stage(run.work, "cold_start")
    if already_made(stage):
        return
    start = stage.require("pretrain") if preset.base is None else resolve(preset.base)
    settings = preset.cold_start
    train(
        start_from(start),
        lambda seed: Writer(start, settings.mixture, seed).documents(),
        settings,
        stage,
        preset,
        start,
    )


if __name__ == "__main__":
    run_recipe(main, __doc__)
