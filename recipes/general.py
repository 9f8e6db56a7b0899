"""Stage 4, general reinforcement learning: `python recipes/general.py --preset nano`.

In: WORK/fusion. Out: WORK/general, the same model after GRPO on what its users meet: both switches and flags,
also in later turns, thinking budgets, tools with real results, questions outside its field; short answers are
liked better. Started again after a kill, it goes on from its newest state.
"""

from deepfast.train.commands import Run, already_made, run_recipe
from deepfast.train.prompts import prompts
from deepfast.train.rewards import (
    correct,
    mode_followed,
    said_as_asked,
    shorter,
    soft_overlong,
    tool_use,
    well_formed,
)
from deepfast.train.stage import Stage

KINDS = {"think": 4.0, "flag": 1.0, "no_think": 1.5, "off": 1.5, "budget": 1.0, "turns": 1.0, "outside": 0.5}


def main(run: Run) -> None:
    """Trains WORK/fusion and writes WORK/general."""
    from deepfast.train.reinforce import reinforce

    stage, settings = Stage(run.work, "general"), run.preset.general
    if already_made(stage):
        return
    start = stage.require("fusion")
    most = settings.max_tokens
    talks = "talk" in run.preset.fusion.mixture.kinds  # else it was not taught to refuse
    kinds = {kind: share for kind, share in KINDS.items() if talks or kind != "outside"}
    rewards = {
        correct: 1.0,
        well_formed: 0.3,
        mode_followed: 0.5,
        tool_use: 0.5,
        said_as_asked: 1.0,
        soft_overlong(most, most // 4): 0.3,
        shorter: 0.1,
    }
    reinforce(
        stage, start, run.preset, settings, rewards,
        lambda count: prompts(stage.name, settings.tasks, kinds, count), learnable=False,
    )  # fmt: skip


if __name__ == "__main__":
    run_recipe(main, __doc__)
