"""A trained model as the checkpoint of its stage, from one process or from many.

In: a Trainer, the text files that belong to the model, a stage. Out: WORK/STAGE as transformers and deepfast
read it. The weights come last: a stage that has them is done. It knows no training.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from deepfast.train.stage import Stage
from deepfast.train.tokenizer import copy_text_files


def publish(trainer: Any, text: Path, stage: Stage) -> None:
    """Write the trainer's model, whole even where FSDP spreads it. Every process calls it; one writes."""
    part = stage.run / "final"
    trainer.save_model(str(part))
    if not trainer.is_world_process_zero():
        return
    copy_text_files(text, stage.directory)
    if not (text / "generation_config.json").exists() and (part / "generation_config.json").exists():
        shutil.copyfile(part / "generation_config.json", stage.directory / "generation_config.json")
    shutil.copyfile(part / "config.json", stage.directory / "config.json")
    for file in sorted(part.glob("model*.safetensors*"), key=lambda file: file.suffix == ".json"):
        os.replace(file, stage.directory / file.name)
    shutil.rmtree(part)
