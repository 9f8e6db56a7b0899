"""Stage 2, reasoning by reinforcement learning: `python recipes/reasoning.py --preset nano`.

In: WORK/cold_start. Out: WORK/reasoning, the same model after GRPO with verifiable rewards, always thinking,
on problems that it solves at times. Started again after a kill, it goes on from its newest state.
"""

from deepfast.train.commands import Run, already_made, run_recipe
from deepfast.train.prompts import prompts
from deepfast.train.rewards import correct, soft_overlong, well_formed
from deepfast.train.stage import Stage

KINDS = {"think": 1.0}


def main(run: Run) -> None:
    """Trains WORK/cold_start and writes WORK/reasoning."""
    from deepfast.train.reinforce import reinforce

    stage, settings = Stage(run.work, "reasoning"), run.preset.reasoning
    if already_made(stage):
        return
    start = stage.require("cold_start")
    most = settings.max_tokens
    rewards = {correct: 1.0, well_formed: 0.1, soft_overlong(most, most // 4): 0.2}
    reinforce(
        stage, start, run.preset, settings, rewards,
        lambda count: prompts(stage.name, settings.tasks, KINDS, count), learnable=True,
    )  # fmt: skip


if __name__ == "__main__":
    run_recipe(main, __doc__)
