"""Stage 3, thinking-mode fusion: `python recipes/fusion.py --preset nano`.

In: WORK/reasoning. Out: WORK/fusion, a model that thinks or answers at once as it is asked, answers from a
thought cut short, calls tools, follows the last flag of a conversation and says what it cannot do. The
thoughts to learn from are the model's own, those that led to right answers (Qwen3 report, section 4.3). With
several processes: `--only answers` first, in one.
"""

import argparse
import time
from collections.abc import Iterator

from deepfast import LLM
from deepfast.config import EngineConfig
from deepfast.train.answers import Teacher, read_exchanges, whole_lines
from deepfast.train.commands import Run, already_made, run_recipe
from deepfast.train.documents import Document, Writer
from deepfast.train.stage import Stage, cpu_threads, num_processes
from deepfast.types import UsageError

PARTS = ("answers", "training")
TRIES = 2  # answers of the model to one question; the first right one is kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this recipe is asked beside the preset."""
    parser.add_argument("--only", choices=PARTS, help="do one part and stop")


def main(run: Run) -> None:
    """Lets the model answer, trains it on what was right and on the other kinds of conversations."""
    from deepfast.train.supervised import start_from, train

    preset, stage = run.preset, Stage(run.work, "fusion")
    if already_made(stage):
        return
    start, settings = stage.require("reasoning"), preset.fusion
    stage.begin(start, preset.name)
    path = stage.run / "answers.jsonl"
    tasks = [name for name in settings.mixture.tasks if name != "tools"]
    wanted = settings.samples * len(tasks)
    if run.args.only in (None, "answers") and len(whole_lines(path)) < wanted:
        if num_processes() > 1:
            raise UsageError(
                "one process lets the model answer: run --only answers first, without a launcher."
            )
        with LLM(start, config=EngineConfig(threads=cpu_threads())) as llm:
            asked = Teacher(
                llm, tasks, 7, tries=TRIES, max_tokens=settings.longest, temperature=1.0, modes=(True,)
            )
            began = time.monotonic()
            for done, kept in asked.write(path, wanted, batch=64):
                print(f"{done} of {wanted} problems asked, {kept} answers kept", flush=True)
            stage.write_cost(0, 0, time.monotonic() - began)
    if run.args.only in (None, "training"):
        samples, model = read_exchanges(path, wanted), start_from(start)
        if wanted and not samples:
            raise UsageError(
                f"{path} holds no right answer. Train {start} longer, or set samples=0 in the preset."
            )
        parameters = model.num_parameters()

        def source(seed: int) -> Iterator[Document]:
            writer = Writer(start, settings.mixture, seed, parameters=parameters, samples=samples)
            return writer.documents()

        train(model, source, settings, stage, preset, start)


if __name__ == "__main__":
    run_recipe(main, __doc__, add_arguments)
