"""Strong-to-weak distillation: `python recipes/distill.py --preset nano`.

In: WORK/general as the teacher (or --teacher), a student of the preset's shape (or --student). Out:
WORK/distill, taught twice: by the teacher's right answers in both modes, then by its distribution on the
student's own answers. Started again after a kill, it goes on where it was. Many GPUs: `--only answers` first,
in one process, then `accelerate launch --config_file recipes/accelerate/fsdp.yaml recipes/distill.py ...`.
"""

import argparse
import time
from pathlib import Path

from deepfast import LLM
from deepfast.config import EngineConfig
from deepfast.train import distillation
from deepfast.train.answers import Teacher, known_tasks, read_answers
from deepfast.train.commands import Run, already_made, run_recipe
from deepfast.train.presets import SAMPLERS, Preset, check_sampler
from deepfast.train.publish import publish
from deepfast.train.stage import Stage, cpu_threads, fingerprint, num_processes
from deepfast.types import UsageError

PARTS = ("answers", "off-policy", "on-policy")
TRIES = 2  # answers of the teacher to one question in one mode; the first right one is kept


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What this recipe is asked beside the preset."""
    parser.add_argument("--teacher", help="a checkpoint or a name (default: WORK/general)")
    parser.add_argument(
        "--student", help="a checkpoint or a name (default: random weights of the preset's shape)"
    )
    parser.add_argument("--only", choices=PARTS, help="do one part and stop")
    parser.add_argument("--rollouts", choices=SAMPLERS, help="who samples the student's answers")
    parser.add_argument(
        "--tasks", nargs="*", default=[], metavar="TASK", help="default: the preset's, and tools"
    )
    parser.add_argument(
        "--micro-batch", type=int, default=8, metavar="N", help="answers in one pass of a device"
    )
    parser.add_argument("--seed", type=int, default=0)


def main(run: Run) -> None:
    """Does the parts that are not done yet."""
    preset, args, stage = run.preset, run.args, Stage(run.work, "distill")
    tasks = known_tasks(args.tasks, preset.tasks)
    if args.micro_batch < 1:
        raise UsageError(f"--micro-batch {args.micro_batch} is below 1. Give at least 1.")
    if already_made(stage):
        return
    teacher = distillation.checkpoint_of(args.teacher or str(stage.require("general")))
    if args.student is None and preset.distill.shape is None:
        raise UsageError(
            f"preset {preset.name} has no shape for a student. Name a checkpoint: --student DIR."
        )
    start = distillation.checkpoint_of(args.student) if args.student else None
    asked = {"student": fingerprint(start) if start else None, "tasks": list(tasks), "seed": args.seed}
    stage.begin(teacher, preset.name, **asked)
    student = Stage(stage.run, "off_policy")
    if args.only == "answers" or (args.only is None and not student.done):
        write_answers(stage, preset, teacher, tasks, args.seed)
    if args.only in (None, "off-policy") and not student.done:
        learn_answers(stage, student, preset, teacher, start, len(tasks))
    if args.only in (None, "on-policy"):
        if not student.done:
            raise UsageError(f"{student.directory} is not there. Run --only off-policy first.")
        learn_on_policy(stage, student, preset, teacher, tasks, args)


def write_answers(stage: Stage, preset: Preset, teacher: Path, tasks: tuple[str, ...], seed: int) -> None:
    """The teacher's right answers, in stage.run/answers.jsonl. One process does it."""
    path, count = stage.run / "answers.jsonl", preset.distill.answers * len(tasks)
    if num_processes() > 1:
        read_answers(path, count)  # refuses where they are missing
        return
    settings = preset.distill
    longest = settings.off_policy.longest
    with LLM(teacher, config=EngineConfig(threads=cpu_threads())) as llm:
        asked = Teacher(llm, tasks, seed, tries=TRIES, max_tokens=longest, temperature=settings.temperature)
        began = time.monotonic()
        for done, kept in asked.write(path, count):
            print(f"{done} of {count} problems asked, {kept} answers kept", flush=True)
        stage.write_cost(0, 0, time.monotonic() - began)


def learn_answers(
    stage: Stage, made: Stage, preset: Preset, teacher: Path, start: Path | None, num_tasks: int
) -> None:
    """Off-policy: fine-tune the student on the answers."""
    from deepfast.train.supervised import new_model, start_from, train

    longest = preset.distill.off_policy.longest
    given = read_answers(stage.run / "answers.jsonl", preset.distill.answers * num_tasks)
    learned = [item for item in given if len(item.tokens) <= longest]
    if not learned:
        raise UsageError(
            f"none of the teacher's answers is right and at most {longest} tokens long: there is nothing to "
            "learn. Name another teacher, easier tasks, or raise `longest` in the preset."
        )
    if start is not None:
        distillation.check_shared_tokenizer(teacher, start)
        model = start_from(start)
    else:
        assert preset.distill.shape is not None
        model = new_model(*distillation.shape_for(teacher, preset.distill.shape))
    print(f"{model.num_parameters():,} parameters learn {len(learned)} answers", flush=True)
    train(model, distillation.shuffled(learned), preset.distill.off_policy, made, preset, teacher)


def learn_on_policy(
    stage: Stage,
    student: Stage,
    preset: Preset,
    teacher: Path,
    tasks: tuple[str, ...],
    args: argparse.Namespace,
) -> None:
    """On-policy: the student answers and learns the teacher's distribution. Writes the checkpoint."""
    import torch

    kind = args.rollouts or ("transformers" if torch.cuda.is_available() else "deepfast")
    check_sampler(kind)
    rollout = (
        distillation.engine_rollout(teacher, preset.distill, cpu_threads()) if kind == "deepfast" else None
    )
    trainer = distillation.on_policy(
        student.directory,
        teacher,
        stage,
        preset.distill,
        tasks=tasks,
        micro_batch=args.micro_batch,
        seed=args.seed,
        rollout=rollout,
        vllm=kind == "vllm",
        bfloat16=torch.cuda.is_available() and preset.precision == "bfloat16",
    )
    publish(trainer, teacher, stage)
    if trainer.is_world_process_zero():
        stage.add_cost(student)
    print(f"written to {stage.directory}")


if __name__ == "__main__":
    run_recipe(main, __doc__, add_arguments)
