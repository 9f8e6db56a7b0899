"""What a stage leaves behind: a trained model as its checkpoint, from one process or from many, and its cost.

In: a Trainer, the text files that belong to the model, a stage. Out: WORK/STAGE as transformers and deepfast
read it. The weights come last: a stage that has them is done. It knows no training.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from deepfast.train.curves import Callback
from deepfast.train.rewards import END
from deepfast.train.stage import Stage
from deepfast.train.tokenizer import copy_text_files, write_json


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
    _end_turns(stage.directory)
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    # A trainer turns the cache off, and writes that down; whoever generates wants it.
    write_json(stage.directory / "config.json", config | {"use_cache": True})
    for file in sorted(part.glob("model*.safetensors*"), key=lambda file: file.suffix == ".json"):
        os.replace(file, stage.directory / file.name)
    shutil.rmtree(part)


def _end_turns(directory: Path) -> None:
    """A base model's files end a text. What is trained here ends a turn, so that <|im_end|> must stop it
    wherever it is served, as in the files of Qwen3's chat models."""
    raw = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    end = next((token["id"] for token in raw["added_tokens"] if token["content"] == END), None)
    path = directory / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    listed = config.get("eos_token_id")
    ends = listed if isinstance(listed, list) else [] if listed is None else [listed]
    if end is None or end in ends:
        return
    write_json(path, config | {"eos_token_id": [end, *ends]})
    path = directory / "tokenizer_config.json"
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"eos_token": END})
