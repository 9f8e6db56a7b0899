"""Problems that need a tool: a calculator for large numbers, a clock for the present moment.

In: a random generator, a level. Out: drafts whose `turns` are a conversation of a chat template (tool calls
with JSON arguments, results, the reply) and whose `tools` describe the tools; `calls_in` reads the calls of a
text, `execute` runs one for a problem, so that a rollout gets real results. A problem has its own present
moment, kept in its key. It knows no template and no engine.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from deepfast.train.problems.arithmetic import judge_number, number
from deepfast.train.problems.base import Draft, Language, Problem, Task, ask
from deepfast.train.problems.dates import WEEKDAYS, judge_date, judge_weekday
from deepfast.train.problems.expression import evaluate, shown
from deepfast.train.problems.tool_phrases import PHRASES, THEN

Arguments = dict[str, Any]


class Step(NamedTuple):
    """A thought, and the call that it leads to."""

    thought: str
    name: str
    arguments: Arguments


class Plan(NamedTuple):
    kind: str  # whose phrasings
    slots: Mapping[str, object]
    steps: list[Step]
    last: str  # the thought before the reply
    answer: str
    key: str
    more: Sequence[tuple[str, int]] = ()  # what is done with the result


def _tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    told = {key: {"type": "string", "description": text} for key, text in properties.items()}
    parameters = {
        "type": "object",
        "properties": told,
        "required": [key for key in told if key != "zone"],
        "additionalProperties": False,  # who decodes by the schema lets no other argument through
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


CALCULATOR = _tool(
    "calculator", "Evaluates an arithmetic expression.", expression="numbers, + - * / and brackets"
)
CLOCK = _tool("clock", "Tells the date, the time and the weekday.", zone='hours from UTC, as "+8"; default 0')
WEATHER = _tool("weather", "Tells the weather of a city.", city="name of the city")
SEARCH = _tool("search", "Searches the web.", query="what to look for")


# --- running a tool ---


def calculate(expression: str) -> str:
    found = evaluate(expression)
    return shown(found.value) if found else "Error: not an expression of numbers, + - * / and brackets"


def clock(now: datetime, zone: str = "") -> str:
    """The moment as JSON. A zone is a whole number of hours from -12 to +14."""
    if zone and not re.fullmatch(r"[+-]?[0-9]{1,2}", zone):
        return f"Error: no such zone: {zone[:20]}"
    if not -12 <= int(zone or 0) <= 14:
        return f"Error: no such zone: {zone}"
    there = now + timedelta(hours=int(zone or 0))
    return json.dumps(
        {
            "date": there.date().isoformat(),
            "time": f"{there:%H:%M}",
            "weekday": WEEKDAYS["en"][there.isoweekday() % 7],
        }
    )


def execute(problem: Problem, name: str, arguments: object) -> str:
    """What a tool answers within a problem; a wrong call gets a sentence that begins with "Error"."""
    offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in problem.tools}
    if name not in offered:
        return f"Error: there is no tool {name[:40]}"
    known = offered[name]["properties"]
    if not isinstance(arguments, dict) or not set(arguments) <= set(known):
        return f"Error: {name} takes {', '.join(known)}"
    if not all(isinstance(value, str) for value in arguments.values()):
        return "Error: arguments are strings"
    if name == "calculator":
        return calculate(arguments.get("expression", ""))
    if name == "clock":
        now = datetime.fromisoformat(problem.key.split("|")[1])
        return clock(now, arguments.get("zone", ""))
    return "Error: the tool is out of order"


def calls_in(text: str) -> list[tuple[str, Arguments]] | None:
    """The tool calls of a text after its thought, in order; None when one is malformed or stays open."""
    text = text[text.rindex("</think>") :] if "</think>" in text else text
    blocks = re.findall(r"<tool_call>\n?(.*?)\n?</tool_call>", text, re.S)
    if not len(blocks) == text.count("<tool_call>") == text.count("</tool_call>"):
        return None
    calls = []
    for block in blocks:
        try:
            call = json.loads(block) if len(block) < 4000 else None
        except (ValueError, RecursionError):
            return None
        if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
            return None
        if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
            return None
        calls.append((call["name"], call["arguments"]))
    return calls


# --- plans ---


def _calculator(expression: str) -> Step:
    return Step(f"{expression} > calculator", "calculator", {"expression": expression})


def _ends(expression: str, value: str) -> str:
    """A check of the last digit: "Check: 2*2-4=0 ends 0 ok"; a quotient is multiplied back."""
    if "/" in expression:
        expression, value = f"{value}*{expression.partition('/')[2]}", expression.partition("/")[0]
    last = re.sub(r"[0-9]*([0-9])", r"\1", expression)
    made = calculate(last)
    return f"Check: {last}={made} ends {int(made) % 10} {value} ok"


def _plain(rng: random.Random, now: datetime, level: int) -> Plan:
    """One expression of large numbers."""
    operator = rng.choice("+-**/")
    a, b = number(rng, rng.randint(4, 6)), number(rng, rng.randint(3, 5))
    if operator == "/":
        a, b = a * (b % 990 + 7), b % 990 + 7
    if operator == "-" and a < b:
        a, b = b, a
    text = f"{a}{operator}{b}"
    value = calculate(text)
    slots = {"x": f"{a} {operator} {b}" if rng.random() < 0.6 else text}
    return Plan("plain", slots, [_calculator(text)], _ends(text, value), value, text)


def _now(rng: random.Random, now: datetime, level: int) -> Plan:
    """The time, date or weekday, here or in another zone."""
    kind = rng.choice(("time", "date", "weekday"))
    zone = "" if rng.random() < 0.6 else f"{rng.choice([-8, -6, -5, -3, 1, 2, 3, 5, 7, 8, 9, 10]):+}"
    step = Step(f"{kind} {zone or 'now'} > clock", "clock", {"zone": zone} if zone else {})
    told = json.loads(clock(now, zone))
    answer = told[kind]
    name = f"{kind} there" if zone else kind
    key = f"{kind}{zone},{now:%Y-%m-%dT%H:%M}"
    return Plan(name, {"z": zone}, [step], f"Check: {kind} {answer} ok", answer, key)


def _compound(rng: random.Random, now: datetime, level: int) -> Plan:
    """A story whose numbers make one expression."""
    a, b, c = number(rng, rng.randint(3, 4)), number(rng, rng.randint(2, 3)), number(rng, rng.randint(2, 3))
    if rng.random() < 0.5:
        text = f"{a}*{b}-{c}"
        kind = "made and broken"
    else:
        text = f"({a}+{b})*{c}"
        kind = "packed"
    value = calculate(text)
    slots = {"p": a, "q": b, "r": c}
    return Plan(kind, slots, [_calculator(text)], _ends(text, value), value, text)


def _until(rng: random.Random, now: datetime, level: int) -> Plan:
    """Minutes until a time later today: minutes and hours apart, an hour borrowed where it must be."""
    minutes = 60 * now.hour + now.minute
    if minutes > 1400:
        return _compound(rng, now, level)
    end = rng.randint(minutes + 1, 24 * 60 - 1)
    hours, rest = end // 60, end % 60
    late, late_rest = (hours, rest) if rest >= now.minute else (hours - 1, rest + 60)
    sign = ">=" if rest >= now.minute else "<"
    apart, over = late - now.hour, late_rest - now.minute
    lines = (
        f"{hours:02}:{rest:02}-{now:%H:%M}\n{rest:02}{sign}{now.minute:02} {late:02}:{late_rest:02}\n"
        f"{late_rest:02}-{now.minute:02}={over} {late:02}-{now.hour:02}={apart}\n"
        f"{apart}*60={apart * 60} {apart * 60}+{over}={end - minutes}\n"
        f"Check: {now.minute}+{over}={late_rest} {now.hour}+{apart}={late} ok"
    )
    step = Step("time now > clock", "clock", {})
    key = f"until,{now:%Y-%m-%dT%H:%M},{end}"
    return Plan("until", {"t": f"{hours:02}:{rest:02}"}, [step], lines, str(end - minutes), key)


def _since(rng: random.Random, now: datetime, level: int) -> Plan:
    """Something made every minute since midnight: the clock, then the calculator."""
    rate = number(rng, rng.randint(2, 3))
    text = f"({now.hour}*60+{now.minute})*{rate}"
    value = calculate(text)
    steps = [Step("time now > clock", "clock", {}), _calculator(text)]
    key = f"since,{now:%H:%M},{rate}"
    return Plan("since", {"r": rate}, steps, _ends(text, value), value, key)


def _chained(rng: random.Random, now: datetime, level: int) -> Plan:
    """Each result is needed for the next question: two calls, three beyond training."""
    a, b = number(rng, rng.randint(3, 5)), number(rng, rng.randint(2, 4))
    text, steps, values = f"{a}*{b}", list[Step](), list[str]()
    more: list[tuple[str, int]] = []
    for _ in range(level - 1):
        steps.append(_calculator(text))
        values.append(calculate(text))
        if len(values) == level - 1:
            break
        operator, c = rng.choice("+-"), number(rng, rng.randint(3, 5))
        more.append((operator, c))
        text = f"{values[-1]}{operator}{c}"
    key = f"{a}*{b}{''.join(f'{operator}{c}' for operator, c in more)}"
    check = _ends(text, values[-1])
    return Plan("chained", {"a": a, "b": b}, steps, check, ", ".join(values), key, more)


PLANS: dict[int, Sequence[Callable[[random.Random, datetime, int], Plan]]] = {
    1: (_plain, _now),
    2: (_compound, _until),
    3: (_since, _chained),
    4: (_chained,),
}


def _question(rng: random.Random, plan: Plan, language: Language) -> str:
    more = "".join(THEN[operator][language].format(c=c) for operator, c in plan.more)
    return ask(rng, PHRASES[plan.kind], language, more=more, **plan.slots)


def make(rng: random.Random, level: int, language: Language) -> Draft:
    now = datetime(2024, 1, 1) + timedelta(minutes=rng.randrange(3 * 365 * 24 * 60))
    plan = rng.choice(PLANS[level])(rng, now, level)
    answer = plan.answer
    if language == "zh" and plan.kind.startswith("weekday"):
        answer = WEEKDAYS["zh"][WEEKDAYS["en"].index(answer)]
    question = _question(rng, plan, language)
    names = {step.name for step in plan.steps}
    tools = [tool for tool in (CALCULATOR, CLOCK) if tool["function"]["name"] in names or rng.random() < 0.5]
    if rng.random() < 0.15:
        tools.append(rng.choice((WEATHER, SEARCH)))
    rng.shuffle(tools)
    turns = _turns(question, plan, now, answer)
    key = f"{plan.key}|{now:%Y-%m-%dT%H:%M}|{answer}"
    return Draft(question, [plan.steps[0].thought], answer, key, tuple(tools), tuple(turns))


def _turns(question: str, plan: Plan, now: datetime, answer: str) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for step in plan.steps:
        call = {"type": "function", "function": {"name": step.name, "arguments": step.arguments}}
        turns.append(
            {"role": "assistant", "reasoning_content": step.thought, "content": "", "tool_calls": [call]}
        )
        result = calculate(**step.arguments) if step.name == "calculator" else clock(now, **step.arguments)
        turns.append({"role": "tool", "content": result})
    turns.append({"role": "assistant", "reasoning_content": plan.last, "content": answer})
    return turns


def judge(key: str, answer: str) -> bool:
    """The value, the moment or the weekday exactly; several values are parted by commas."""
    right = key.split("|")[2]
    if right in WEEKDAYS["en"] or right in WEEKDAYS["zh"]:
        days = WEEKDAYS["en"] if right in WEEKDAYS["en"] else WEEKDAYS["zh"]
        return judge_weekday(f"{days.index(right)}+0", answer)
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", right):
        return judge_date(f"{right},0|on", answer)
    if re.fullmatch(r"-?[0-9]+", right):
        return judge_number(int(right), answer)
    return re.sub(r" *, *", ", ", answer) == right


TASKS = (Task("tools", (1, 2, 3), make, judge),)
