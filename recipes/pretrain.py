"""Stage 0, pre-training: `python recipes/pretrain.py --preset nano`.

In: WORK/tokenizer. Out: WORK/pretrain, a model that has read worked problems as plain text; it knows no chat
format. Started again after a kill, it goes on from its newest state.
"""

from deepfast.train.commands import Run, already_made, run_recipe
from deepfast.train.documents import Writer
from deepfast.train.stage import Stage
from deepfast.types import UsageError


def main(run: Run) -> None:
    """Trains from random weights and writes WORK/pretrain."""
    from deepfast.train.supervised import new_model, train

    preset, stage = run.preset, Stage(run.work, "pretrain")
    if preset.shape is None or preset.pretrain is None:
        raise UsageError(f"preset {preset.name} starts from {preset.base}. Begin with cold_start.")
    if already_made(stage):
        return
    settings, text = preset.pretrain, stage.require("tokenizer")
    tokenizer = Writer(text, settings.mixture, 0).tokenizer
    pad, end = (tokenizer.encode(token, control=True)[0] for token in ("<|endoftext|>", "<|im_end|>"))
    model = new_model(preset.shape, pad, end)
    print(f"{model.num_parameters():,} parameters", flush=True)
    train(model, lambda seed: Writer(text, settings.mixture, seed).documents(), settings, stage, preset, text)


if __name__ == "__main__":
    run_recipe(main, __doc__)
