"""The texts that a small tokenizer is learned on: how problems are worded, not what they hold.

In: a seed, the chat template. Out: texts. Words whose letters are counted or turned around are left out, so
that no merge is learned on them and they arrive nearly letter by letter. It knows no tokenizer.
"""

import json
import random
from collections.abc import Iterator

from deepfast.train.documents import STOP_SENTENCE, SYSTEM_PROMPTS
from deepfast.train.problems import TASKS, sample
from deepfast.train.talk import small_talk

SPELLED = ("letters", "spelling", "backwards")
PER_TASK = 500
_ROLES = ("user\n", "assistant\n", "system\n", " /think", " /no_think", "/think ", "/no_think ")
_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n",
    "</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n",
    '\n{"name": <function-name>, "arguments": <args-json-object>}\n',
)


def wording(seed: int = 0) -> Iterator[str]:
    """Questions, thoughts and replies of every task, the fixed sentences, small talk."""
    rng = random.Random(seed)
    for _ in range(PER_TASK):
        yield from (*_ROLES, f"\n\n{STOP_SENTENCE}\n", *SYSTEM_PROMPTS, *_TOOLS * 3)
        talk = small_talk(rng, "train", 3_000_000)
        yield from (talk.question, talk.thought, talk.reply)
        for name in TASKS:
            problem = sample(name, rng)
            if name in SPELLED:
                word = problem.key.partition(":")[2].partition("|")[0]
                yield problem.question.replace(word, " ")
                continue
            yield from (problem.question, "\n" + problem.trace, problem.answer)
            yield from (json.dumps(tool, ensure_ascii=False) for tool in problem.tools for _ in range(3))
            yield from (turn["content"] for turn in problem.turns if turn["role"] == "tool")
