"""Dates: the weekday of a date, a weekday some days on, a date some days on, the days between two dates.

In: a random generator, a level. Out: drafts and judges. A weekday is a sum modulo seven whose terms are
shown; days are added month by month. Right answers come from the standard library's calendar. It knows
nothing of other tasks.
"""

import random
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta

from deepfast.train.problems.arithmetic import judge_number
from deepfast.train.problems.base import Draft, Language, Phrases, Task, ask

WEEKDAYS: Mapping[Language, Sequence[str]] = {  # from Sunday, as in the traces: 0 to 6
    "en": ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
    "zh": ("星期日", "星期一", "星期二", "星期三", "星期四", "星期五", "星期六"),
}
MONTHS = ("January February March April May June July August September October November December").split()
WEEKDAY_OF: Phrases = {
    "en": (
        "What day of the week is {d}?",
        "Which weekday is {d}?",
        "On which day of the week does {d} fall?",
        "What weekday was or will be {d}?",
        "{d}: which day of the week?",
        "Tell me the weekday of {d}.",
        "Is {d} a Monday, a Tuesday, or which day?",
        "Find the day of the week for {d}.",
    ),
    "zh": (
        "{d}是星期几？",
        "{d}是周几？",
        "请问{d}是星期几？",
        "算一下{d}是星期几。",
        "{d}那天是星期几？",
        "求{d}对应的星期。",
        "{d}星期几",
        "你知道{d}是星期几吗？",
    ),
}
WEEKDAY_ON: Phrases = {
    "en": (
        "Today is {w}. What day of the week is it in {n} days?",
        "If today is {w}, which weekday is it {n} days from now?",
        "It is {w}. What day will it be {n} days later?",
        "{n} days after a {w} is which weekday?",
        "Today is {w}; {n} days from today is what day?",
        "Which day of the week comes {n} days after {w}?",
        "Starting on a {w}, what weekday is it after {n} days?",
    ),
    "zh": (
        "今天是{w}，{n}天后是星期几？",
        "如果今天是{w}，再过{n}天是星期几？",
        "今天{w}，{n}天以后是星期几？",
        "{w}之后{n}天是星期几？",
        "从{w}算起，过{n}天是星期几？",
        "今天是{w}，请问{n}天之后是星期几？",
        "{w}再过{n}天是周几？",
    ),
}
DATE_ON: Phrases = {
    "en": (
        "What date is {n} days after {d}?",
        "Which date comes {n} days after {d}?",
        "Add {n} days to {d}.",
        "Today is {d}. What is the date in {n} days?",
        "It is {d}. Which date is it {n} days from now?",
        "{d} plus {n} days is which date?",
        "A parcel sent on {d} arrives {n} days later. On what date?",
        "Count {n} days forward from {d}. What date is it?",
    ),
    "zh": (
        "{d}之后{n}天是哪一天？",
        "{d}过{n}天是几月几日？",
        "今天是{d}，{n}天后是哪天？",
        "从{d}起再过{n}天是什么日期？",
        "{d}加上{n}天是哪天？",
        "计算{d}之后第{n}天的日期。",
        "包裹{d}寄出，{n}天后到，是哪一天？",
        "{d}往后数{n}天是几号？",
    ),
}
BETWEEN: Phrases = {
    "en": (
        "How many days are there from {d} to {e}?",
        "How many days after {d} is {e}?",
        "How many days is it from {d} to {e}?",
        "Count the days from {d} until {e}.",
        "Today is {d}. In how many days is {e}?",
        "What is the number of days from {d} to {e}?",
        "How long is it from {d} to {e}, in days?",
    ),
    "zh": (
        "从{d}再过多少天是{e}？",
        "{d}到{e}相隔几天？",
        "{e}是{d}之后多少天？",
        "今天是{d}，离{e}还有多少天？",
        "计算{d}到{e}的天数。",
        "{d}和{e}之间相差多少天？",
        "请数一数从{d}到{e}要过几天。",
    ),
}
_MONTH_TERM = (0, 3, 3, 6, 1, 4, 6, 2, 5, 0, 3, 5)
_CENTURY_TERM = {17: 4, 18: 2, 19: 0, 20: 6, 21: 4, 22: 2}
_MOST_DAYS = {1: (1, 30), 2: (31, 100), 3: (101, 365), 4: (366, 730)}


def written(rng: random.Random, day: date, language: Language) -> str:
    """A date as people write it."""
    iso = day.isoformat()
    if language == "zh":
        return rng.choice(
            (iso, f"{day.year}年{day.month}月{day.day}日", f"{day.year}年{day.month}月{day.day}日")
        )
    month = MONTHS[day.month - 1]
    return rng.choice((iso, f"{month} {day.day}, {day.year}", f"{day.day} {month} {day.year}"))


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _leap_line(year: int) -> str:
    kind = "leap" if _is_leap(year) else "common"
    if year % 100 == 0:
        return f"{year} /100 {year // 100}/4={year // 400}r{year // 100 % 4} {kind}"
    return f"{year} {year % 100}/4={year % 100 // 4}r{year % 4} {kind}"


def _sevens(total: int) -> str:
    return f"{total}-7*{total // 7}={total}-{total // 7 * 7}={total % 7}"


# --- weekdays ---


def _weekday_lines(day: date) -> list[str]:
    """Year, a quarter of it, century, month, one less before March of a leap year, day; then modulo seven."""
    short, century = day.year % 100, day.year // 100
    terms = [
        (f"century {century}", _CENTURY_TERM[century]),
        (f"month {day.month}", _MONTH_TERM[day.month - 1]),
    ]
    if _is_leap(day.year) and day.month < 3:
        terms.append(("leap", -1))
    total = short + short // 4
    lines = [day.isoformat(), _leap_line(day.year), f"year {short}+{short // 4}={total}"]
    for name, term in (*terms, ("day", day.day)):
        lines.append(f"{name} {total}{term:+}={total + term}")
        total += term
    before = total - day.day
    again = before % 7 + day.day
    lines.append(_sevens(total))
    return [*lines, f"Check: {_sevens(before)} {before % 7}+{day.day}={again} {_sevens(again)} ok"]


def make_weekday(rng: random.Random, level: int, language: Language) -> Draft:
    names = WEEKDAYS[language]
    if level == 1:
        start, days = rng.randrange(7), rng.randint(2, 120)
        total, again = start + days, start + days % 7
        lines = [f"{start}={names[start]}", f"{start}+{days}={total}", _sevens(total)]
        lines.append(f"Check: {_sevens(days)} {start}+{days % 7}={again} {_sevens(again)} ok")
        question = ask(rng, WEEKDAY_ON, language, w=names[start], n=days)
        key = f"{start}+{days}"
    else:
        low, high = {2: (2000, 2049), 3: (1900, 2099)}.get(level, rng.choice(((1800, 1899), (2100, 2199))))
        day = date(low, 1, 1) + timedelta(rng.randrange((date(high, 12, 31) - date(low, 1, 1)).days + 1))
        lines = _weekday_lines(day)
        question = ask(rng, WEEKDAY_OF, language, d=written(rng, day, language))
        key, total = day.isoformat(), day.isoweekday()
    answer = names[total % 7]
    lines.insert(-1, f"{total % 7}={answer}")
    return Draft(question, lines, answer, key)


def judge_weekday(key: str, answer: str) -> bool:
    if "+" in key:
        start, _, days = key.partition("+")
        right = (int(start) + int(days)) % 7
    else:
        right = date.fromisoformat(key).isoweekday() % 7
    english, chinese = WEEKDAYS["en"][right], WEEKDAYS["zh"][right]
    names = {chinese, chinese.replace("星期", "周"), chinese.replace("星期", "礼拜")}
    if right == 0:
        names |= {"星期天", "周天", "礼拜天"}
    return answer in names or answer.lower() == english.lower()


# --- dates ---


def _month_length(year: int, month: int) -> int:
    if month == 2:
        return 29 if _is_leap(year) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def _months(day: date, end: date) -> list[tuple[str, int, int, int]]:
    """The months from one date to the other: (year-month and length, length, day begun after, last day)."""
    year, month, at, months = day.year, day.month, day.day, []
    while (year, month) <= (end.year, end.month):
        length = _month_length(year, month)
        leap = f"{_leap_line(year)}; " if month == 2 else ""
        last = end.day if (year, month) == (end.year, end.month) else length
        months.append((f"{leap}{year}-{month:02} {length}", length, at, last))
        year, month, at = (year, month + 1, 0) if month < 12 else (year + 1, 1, 0)
    return months


def _on_lines(day: date, end: date, days: int) -> list[str]:
    """Month by month: "2024-03 31: 31-15=16 45-16=29" until what is left fits into a month."""
    lines, left, parts = [f"{day.isoformat()}+{days}"], days, []
    *whole, (name, _, at, _) = _months(day, end)
    for month, length, begun, _ in whole:
        parts.append(length - begun)
        lines.append(f"{month}: {length}-{begun}={parts[-1]} {left}-{parts[-1]}={left - parts[-1]}")
        left -= parts[-1]
    return [*lines, f"{name}: {at}+{left}={at + left} fits", f"Check: {_running([*parts, left])} ok"]


def _between_lines(day: date, end: date, days: int) -> list[str]:
    """How many months follow the first; then month by month, counted down to 0, the last:
    "4 2041-09 30: 30-6=24 0+24=24"."""
    lines, total, left = [f"{day.isoformat()} to {end.isoformat()}"], 0, f"{days}"
    years, months = end.year - day.year, _months(day, end)
    since = 12 * years + end.month
    lines.append(
        f"{end.year}-{day.year}={years} 12*{years}={12 * years} {12 * years}+{end.month:02}={since} "
        f"{since}-{day.month:02}={since - day.month}"
    )
    for number, (name, _, begun, last) in enumerate(months, 1):
        part = last - begun
        lines.append(f"{len(months) - number} {name}: {last}-{begun}={part} {total}+{part}={total + part}")
        total += part
        left += f"-{part}={days - total}"
    return [*lines, f"Check: {left} ok"]


def _running(parts: Sequence[int]) -> str:
    """16, 30, 31 -> "16+30=46+31=77" """
    text, total = str(parts[0]), parts[0]
    for part in parts[1:]:
        total += part
        text += f"+{part}={total}"
    return text


def make_date(rng: random.Random, level: int, language: Language) -> Draft:
    """The date some days on or, half of the time, the days between two dates."""
    day = date(2000, 1, 1) + timedelta(rng.randrange(50 * 365))
    days = rng.randint(*_MOST_DAYS[level])
    end = day + timedelta(days)
    shown = written(rng, day, language)
    if rng.random() < 0.5:
        question = ask(rng, DATE_ON, language, d=shown, n=days)
        return Draft(question, _on_lines(day, end, days), end.isoformat(), f"{day},{days}|on")
    question = ask(rng, BETWEEN, language, d=shown, e=written(rng, end, language))
    return Draft(question, _between_lines(day, end, days), str(days), f"{day},{days}|between")


def judge_date(key: str, answer: str) -> bool:
    """A number of days; or a date as 2024-03-05, 2024年3月5日, March 5, 2024 or 5 March 2024."""
    what, _, wish = key.partition("|")
    start, _, days = what.partition(",")
    if wish == "between":
        return judge_number(int(days), re.sub(r" *(days?|天)$", "", answer))
    end = date.fromisoformat(start) + timedelta(int(days))
    month = MONTHS[end.month - 1].lower()
    return answer.lower() in (
        end.isoformat(),
        f"{end.year}-{end.month}-{end.day}",
        f"{end.year}年{end.month}月{end.day}日",
        f"{month} {end.day}, {end.year}",
        f"{month} {end.day} {end.year}",
        f"{end.day} {month} {end.year}",
    )


TASKS = (
    Task("weekday", (1, 2, 3), make_weekday, judge_weekday),
    Task("dates", (1, 2, 3), make_date, judge_date),
)
