"""What a stage leaves behind: a trained model as its checkpoint, from one process or from many, and its cost.

In: a Trainer, the text files that belong to the model, a stage. Out: WORK/STAGE as transformers and deepfast
read it. The weights come last: a stage that has them is done. It knows no training.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from deepfast.train.curves import Callback
from deepfast.train.stage import Stage
from deepfast.train.tokenizer import copy_text_files


class CostCallback(Callback):
    """Keeps the stage's cost.json. tokens_per_step: None takes the tokens that Trainer has counted."""

    def __init__(self, stage: Stage, tokens_per_step: int | None = None) -> None:
        self.stage, self.tokens, self.began = stage, tokens_per_step, time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tokens, steps and seconds up to this state."""
        now, steps = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            tokens = int(state.num_input_tokens_seen) if self.tokens is None else steps * self.tokens
            self.stage.write_cost(tokens, steps, now - self.began)
        self.began = now


def publish(trainer: Any, text: Path, stage: Stage) -> None:
    """Write the trainer's model, whole even where FSDP spreads it. Every process calls it; one writes."""
    part = stage.run / "final"
    trainer.save_model(str(part))
    if trainer.is_world_process_zero():
        _move(part, text, stage)
    trainer.accelerator.wait_for_everyone()  # the next stage reads what one process wrote


def _move(part: Path, text: Path, stage: Stage) -> None:
    copy_text_files(text, stage.directory)
    if not (text / "generation_config.json").exists() and (part / "generation_config.json").exists():
        shutil.copyfile(part / "generation_config.json", stage.directory / "generation_config.json")
    shutil.copyfile(part / "config.json", stage.directory / "config.json")
    for file in sorted(part.glob("model*.safetensors*"), key=lambda file: file.suffix == ".json"):
        os.replace(file, stage.directory / file.name)
    shutil.rmtree(part)
