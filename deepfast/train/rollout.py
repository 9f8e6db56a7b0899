"""Rollouts: episodes (messages, a thinking mode, tools) -> what the policy says, token for token, over all
turns.

In: a way to continue ids (our engine on the live weights, or a trainer's own generation), the tokenizer files
of the policy. Out: token ids with a mask: 1 where the policy drew the token, 0 where it was forced (a
thinking budget) or came from a tool; only the former may be trained on. Between two turns nothing is rendered
anew: what is trained on is what was drawn. `rollout_func` is the shape in which TRL's GRPOTrainer takes it.
It knows no rewards.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from deepfast.text.files import TextFiles
from deepfast.text.template import ChatTemplate
from deepfast.text.tokenizer import Tokenizer
from deepfast.thinking.phases import ControlIds, Phase, PhaseMachine
from deepfast.thinking.sentences import Sentences, language_of
from deepfast.train.live import Ask, Drawn, DrawSettings, LiveEngine
from deepfast.train.problems import Problem
from deepfast.train.problems.tools import calls_in, execute
from deepfast.types import Message, Mode, UsageError

Draw = Callable[[Sequence[Ask]], list[Drawn]]
SWITCH: dict[Mode, bool | None] = {"on": True, "off": False, "auto": None}  # enable_thinking of the template


@dataclass(frozen=True, slots=True)
class Episode:
    """What the policy is asked.

    mode: "off" closes the thought in the prompt; "auto" and "on" render the prompt as the template does
    without a switch and with it (for Qwen3 both leave it to the model, which reads /think and /no_think).
    budget: most tokens inside each thought, which is then ended by the stop sentence. problem: executes the
    calls of its tools. think and reply are for the rewards: was a thought asked for, what must be said.
    """

    messages: tuple[Message, ...]
    mode: Mode = "auto"
    budget: int | None = None
    problem: Problem | None = None
    think: bool | None = None
    reply: str | None = None

    @property
    def tools(self) -> list[dict[str, Any]] | None:
        """What the template is given."""
        return list(self.problem.tools) if self.problem is not None and self.problem.tools else None


@dataclass(slots=True)
class Rollout:
    """ids: everything after the prompt; mask and logprobs have its length (0 where nothing was drawn).

    turns: the assistant's, control tokens included. results: of the tools. length: tokens that were drawn.
    """

    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens that the policy drew."""
        return sum(self.mask)


class _Run:
    """One episode on its way. seed: of its next draw."""

    def __init__(
        self, episode: Episode, prompt_ids: list[int], stop_ids: list[int], rng: random.Random
    ) -> None:
        self.episode, self.rollout, self.stop_ids, self._rng = episode, Rollout(prompt_ids), stop_ids, rng
        self.machine: PhaseMachine
        self.open = True
        self.spent = False  # was the thought of this turn ended by its budget?
        self.turn_began = 0

    @property
    def context(self) -> list[int]:
        return self.rollout.prompt_ids + self.rollout.ids

    @property
    def seed(self) -> int:
        return self._rng.getrandbits(62)

    def begin_turn(self, ids: ControlIds) -> None:
        self.machine, self.spent = PhaseMachine(ids, self.context), False
        self.turn_began = len(self.rollout.ids)

    def drew(self, drawn: Drawn) -> None:
        self._add(drawn.ids, 1, drawn.logprobs)
        for token in drawn.ids:
            self.machine.advance(token)

    def force(self, ids: Sequence[int]) -> None:
        self._add(ids, 0, None)

    def _add(self, ids: Sequence[int], mark: int, logprobs: Sequence[float] | None) -> None:
        self.rollout.ids += ids
        self.rollout.mask += [mark] * len(ids)
        self.rollout.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)


class Rollouts:
    """Runs many episodes at once. max_tokens: of an episode after its prompt, those of tools included.

    max_turns: of the assistant. seed: equal seeds, weights and episodes give equal rollouts with our engine.
    Raises UsageError for a prompt that leaves no room in the context.
    """

    def __init__(
        self, directory: Path, *, context: int, max_tokens: int, max_turns: int = 4, seed: int = 0
    ) -> None:
        text = TextFiles.from_dir(directory)
        self.tokenizer = Tokenizer.of(text)
        self.template = ChatTemplate.of(text, self.tokenizer)
        self.sentences = Sentences.of(text.thinking)
        self.context, self.max_tokens, self.max_turns, self.seed = context, max_tokens, max_turns, seed
        found = [self.tokenizer.control_id(name) for name in _CONTROL]
        if None in found:
            missing = _CONTROL[found.index(None)]
            raise UsageError(
                f"{directory}: the vocabulary has no {missing}. Rollouts need the tokens of Qwen3."
            )
        think_open, think_close, tool_open, tool_close, self.end, document_end = (int(i or 0) for i in found)
        self.ids = ControlIds(
            think_open, think_close, tool_open, tool_close, frozenset((self.end, document_end))
        )

    def sample(self, episodes: Sequence[Episode], draw: Draw, key: object = 0) -> list[Rollout]:
        """A rollout of each. key: draws other tokens than another key does (the training step)."""
        runs = [
            self._start(episode, random.Random(f"{self.seed} {key} {i}"))
            for i, episode in enumerate(episodes)
        ]
        while asked := [(run, limit) for run in runs if (limit := self._limit(run))]:
            drawn = draw([Ask(run.context, limit, run.seed) for run, limit in asked])
            for (run, limit), each in zip(asked, drawn, strict=True):
                logprobs = None if each.logprobs is None else each.logprobs[:limit]
                run.drew(Drawn(list(each.ids[:limit]), logprobs))
                self._follow(run)
        return [run.rollout for run in runs]

    def prompt_ids(self, episode: Episode) -> list[int]:
        """The rendered prompt."""
        return self.template.encode(
            episode.messages, tools=episode.tools, enable_thinking=SWITCH[episode.mode]
        )

    def _start(self, episode: Episode, rng: random.Random) -> _Run:
        prompt = self.prompt_ids(episode)
        if len(prompt) >= self.context:
            raise UsageError(
                f"a prompt has {len(prompt)} tokens, but rollouts have a context of {self.context}. Raise it."
            )
        asked = next((m.content or "" for m in reversed(episode.messages) if m.role == "user"), "")
        stop = self.tokenizer.encode(self.sentences.stop(language_of(asked)), control=True)
        run = _Run(episode, prompt, stop, rng)
        run.begin_turn(self.ids)
        return run

    def _limit(self, run: _Run) -> int:
        """How many tokens may be drawn next; 0 when the episode is over. Ends a thought whose budget is
        spent."""
        budget, machine = run.episode.budget, run.machine
        thinks = machine.phase is Phase.THINK
        if (
            run.open
            and budget is not None
            and thinks
            and not run.spent
            and machine.reasoning_tokens >= budget
        ):
            run.force(run.stop_ids)
            run.spent = True
        room = min(self.max_tokens, self.context - len(run.rollout.prompt_ids)) - len(run.rollout.ids)
        if run.open and room < 1:
            self._end_turn(run)
            run.open = False
        if not run.open:
            return 0
        if budget is None or run.spent:
            return room
        if thinks:
            return min(room, budget - machine.reasoning_tokens)
        return min(room, 1 + budget) if machine.may_open else room  # it may open a thought first

    def _follow(self, run: _Run) -> None:
        """After a draw: the turn goes on, its calls are answered, or the episode is over."""
        if run.rollout.ids[-1] not in self.ids.stops:
            return
        text = self._end_turn(run)
        problem = run.episode.problem
        calls = calls_in(text) if problem is not None and problem.tools else None
        ended = run.rollout.ids[-1] == self.end
        if not calls or not ended or len(run.rollout.turns) >= self.max_turns:
            run.open = False
            return
        assert problem is not None
        results = [execute(problem, name, arguments) for name, arguments in calls]
        run.rollout.results += results
        run.force(self._told(results, run.episode.mode))
        run.begin_turn(self.ids)

    def _end_turn(self, run: _Run) -> str:
        """Keep the turn's text. A last token of tools or budgets may have left nothing of it."""
        known = self.tokenizer.num_ids  # a vocabulary may be padded with rows that stand for nothing
        text = self.tokenizer.decode(token for token in run.rollout.ids[run.turn_began :] if token < known)
        if text:
            run.rollout.turns.append(text)
        return text

    def _told(self, results: Sequence[str], mode: Mode) -> list[int]:
        """What stands between the end of a turn with calls and the begin of the next, as the template writes
        it."""
        before = [Message("user", "q"), Message("assistant", "a")]
        turns = [*before, *(Message("tool", result) for result in results)]
        count = self.template.encode(before, add_generation_prompt=False).count(self.end)
        whole = self.template.encode(turns, enable_thinking=SWITCH[mode])
        ends = [i for i, token in enumerate(whole) if token == self.end]
        return whole[ends[count - 1] + 1 :]


_CONTROL = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<|im_end|>", "<|endoftext|>")


def columns(episodes: Sequence[Episode], rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    """What TRL's GRPOTrainer takes from a rollout_func, and the columns that rewards.py reads."""
    return {
        "prompt_ids": [r.prompt_ids for r in rollouts],
        "completion_ids": [r.ids for r in rollouts],
        "env_mask": [r.mask for r in rollouts],
        "turns": [r.turns for r in rollouts],
        "results": [r.results for r in rollouts],
        "length": [r.length for r in rollouts],
        "problem": [e.problem for e in episodes],
        "think": [e.think for e in episodes],
        "reply": [e.reply for e in episodes],
    }


class RolloutFunc:
    """A `rollout_func` of TRL 1.16: f(prompts, trainer) with every prompt repeated for its group already.

    The prompts of its dataset are names of episodes. `kind`: "deepfast" draws with our engine on the weights
    of this moment; "transformers" and "vllm" with the generation that the trainer was configured for.
    seconds: spent here so far. Log-probabilities are given only by "vllm", where TRL corrects with them; our
    engine's are those of the model.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        episodes: Mapping[str, Episode],
        kind: str,
        settings: DrawSettings,
        directory: Path,
    ) -> None:
        self.rollouts, self.episodes, self.kind, self.settings = rollouts, episodes, kind, settings
        self._directory = directory
        self._engine: LiveEngine | None = None
        self.seconds = 0.0

    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Rollouts for the prompts, in TRL's columns."""
        chosen = [self.episodes[name] for name in prompts]
        made = self.sample(chosen, trainer, (trainer.state.global_step, trainer.accelerator.process_index))
        logprobs = [r.logprobs for r in made] if self.kind == "vllm" else None
        return {**columns(chosen, made), "logprobs": logprobs}

    def sample(self, chosen: Sequence[Episode], trainer: Any, key: object) -> list[Rollout]:
        """Rollouts of the trainer's policy as it is now."""
        began = time.monotonic()
        draw = self._live(trainer) if self.kind == "deepfast" else partial(_trainer_draws, trainer)
        made = self.rollouts.sample(chosen, draw, key)
        self.seconds += time.monotonic() - began
        return made

    def _live(self, trainer: Any) -> Draw:
        if self._engine is None:
            model = trainer.accelerator.unwrap_model(trainer.model)
            self._engine = LiveEngine(model, self._directory, self.settings)
        else:
            self._engine.refresh()
        return self._engine.draw


def _trainer_draws(trainer: Any, asks: Sequence[Ask]) -> list[Drawn]:
    """TRL's own generation: transformers, its continuous batching, or vLLM, as GRPOConfig says. TRL's tool
    loop takes the same way; seeds are the trainer's business, and limits are kept by the caller."""
    ids, logprobs = trainer._generate_single_turn([list(ask.ids) for ask in asks], None, {}, 1)
    each = [None] * len(ids) if logprobs is None else logprobs
    return [Drawn(list(new), old) for new, old in zip(ids, each, strict=True)]
