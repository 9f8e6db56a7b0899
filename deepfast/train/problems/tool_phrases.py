"""How questions are asked that need a tool.

In: nothing. Out: phrasings by kind and language. It knows no tool and no answer.
"""

from collections.abc import Mapping

from deepfast.train.problems.base import Language, Phrases

PHRASES: Mapping[str, Phrases] = {
    "plain": {
        "en": (
            "What is {x}?",
            "Use the calculator: {x}",
            "Please work out {x} with the calculator.",
            "Compute {x}.",
            "{x} = ?",
            "Calculate {x} for me.",
            "I need the exact value of {x}.",
            "How much is {x}?",
        ),
        "zh": (
            "{x}等于多少？",
            "用计算器算一下：{x}",
            "请用计算器计算{x}。",
            "计算 {x}",
            "{x} 得多少？",
            "帮我算{x}。",
            "我需要{x}的准确结果。",
            "{x}是多少？",
        ),
    },
    "time": {
        "en": (
            "What time is it?",
            "What is the time now?",
            "Can you tell me the time?",
            "What does the clock say?",
            "Current time, please.",
            "Do you know what time it is?",
        ),
        "zh": (
            "现在几点？",
            "现在几点了？",
            "请问现在是什么时间？",
            "看看钟，几点了？",
            "告诉我现在的时间。",
            "当前时间",
        ),
    },
    "date": {
        "en": (
            "What is today's date?",
            "Which date is it today?",
            "What day of the month is it? Give the full date.",
            "Today's date, please.",
            "Can you tell me the date?",
            "What is the date now?",
        ),
        "zh": (
            "今天几号？",
            "今天是几月几日？",
            "请问今天的日期是什么？",
            "告诉我今天的日期。",
            "今天的日期",
            "现在是哪一天？",
        ),
    },
    "weekday": {
        "en": (
            "What day of the week is it today?",
            "Which weekday is today?",
            "Is it Monday today, or what day?",
            "Today is which day of the week?",
            "Tell me today's weekday.",
            "What weekday do we have?",
        ),
        "zh": (
            "今天星期几？",
            "今天是周几？",
            "请问今天是星期几？",
            "告诉我今天星期几。",
            "今天礼拜几？",
            "现在是星期几？",
        ),
    },
    "time there": {
        "en": (
            "What time is it in the zone UTC{z}?",
            "What is the time now at UTC{z}?",
            "Tell me the time in time zone {z}.",
            "What does the clock say in UTC{z}?",
        ),
        "zh": (
            "UTC{z}时区现在几点？",
            "时区{z}现在是什么时间？",
            "请告诉我UTC{z}的当前时间。",
            "UTC{z}那里几点了？",
        ),
    },
    "date there": {
        "en": (
            "What is the date now in the zone UTC{z}?",
            "Which date is it at UTC{z}?",
            "Tell me today's date in time zone {z}.",
            "Full date in UTC{z}, please.",
        ),
        "zh": (
            "UTC{z}时区今天几号？",
            "时区{z}现在是几月几日？",
            "请告诉我UTC{z}的日期。",
            "UTC{z}那里今天是哪一天？",
        ),
    },
    "weekday there": {
        "en": (
            "What day of the week is it in the zone UTC{z}?",
            "Which weekday is it now at UTC{z}?",
            "Tell me the weekday in time zone {z}.",
            "What weekday do they have in UTC{z}?",
        ),
        "zh": (
            "UTC{z}时区今天星期几？",
            "时区{z}现在是周几？",
            "请告诉我UTC{z}今天星期几。",
            "UTC{z}那里是星期几？",
        ),
    },
    "made and broken": {
        "en": (
            "A factory makes {p} parts a day for {q} days, and {r} of them are broken. How many are good?",
            "{q} trucks carry {p} bricks each; {r} bricks break. How many are whole?",
            "A printer prints {p} pages an hour for {q} hours, then {r} pages are thrown away. How "
            "many remain?",
            "{q} fields give {p} kg each, and {r} kg are eaten by birds. How many kg are left?",
        ),
        "zh": (
            "工厂每天生产{p}个零件，生产了{q}天，其中{r}个是坏的，好的有多少个？",
            "{q}辆卡车每辆运{p}块砖，碎了{r}块，完整的有多少块？",
            "打印机每小时打印{p}页，工作{q}小时，扔掉{r}页，还剩多少页？",
            "{q}块地每块收{p}千克，鸟吃掉{r}千克，还剩多少千克？",
        ),
    },
    "packed": {
        "en": (
            "A box holds {p} red and {q} blue beads. How many beads are in {r} boxes?",
            "Every day {p} adults and {q} children visit the zoo. How many visitors are that in {r} days?",
            "A set costs {p} dollars and its case {q} dollars. What do {r} sets with cases cost?",
            "Each of {r} shelves has {p} novels and {q} atlases. How many books are there?",
        ),
        "zh": (
            "一盒有{p}颗红珠和{q}颗蓝珠，{r}盒共有多少颗？",
            "动物园每天来{p}个大人和{q}个孩子，{r}天共来多少人？",
            "一套{p}元，盒子{q}元，{r}套连盒子一共多少元？",
            "{r}个书架每个有{p}本小说和{q}本地图，一共多少本？",
        ),
    },
    "until": {
        "en": (
            "How many minutes are left until {t} today?",
            "My train leaves at {t} today. In how many minutes is that?",
            "How many minutes is it from now to {t}?",
            "The shop closes at {t}. How many minutes do I have?",
            "In how many minutes will it be {t}?",
        ),
        "zh": (
            "离今天{t}还有多少分钟？",
            "我的火车今天{t}开，还有几分钟？",
            "从现在到{t}有多少分钟？",
            "商店{t}关门，我还有多少分钟？",
            "再过多少分钟是{t}？",
        ),
    },
    "since": {
        "en": (
            "A machine has made {r} parts a minute since midnight. How many has it made by now?",
            "Since midnight {r} litres have flowed out every minute. How many litres is that until now?",
            "A server has answered {r} requests a minute since 00:00. How many so far today?",
            "{r} steps a minute since midnight: how many steps by now?",
        ),
        "zh": (
            "机器从零点起每分钟做{r}个零件，到现在做了多少个？",
            "从午夜起每分钟流出{r}升水，到现在一共多少升？",
            "服务器从00:00起每分钟回答{r}个请求，今天到现在多少个？",
            "零点以来每分钟{r}步，到现在共多少步？",
        ),
    },
    "chained": {
        "en": (
            "Multiply {a} by {b}.{more} Give every result.",
            "What is {a} * {b}?{more} Tell me each result, parted by commas.",
            "First compute {a} times {b}.{more} List all results in order.",
            "Work out {a} x {b} with the calculator.{more} Name each result.",
        ),
        "zh": (
            "把{a}乘以{b}。{more}给出每一步的结果。",
            "{a} * {b}等于多少？{more}请依次说出各个结果。",
            "先算{a}乘{b}。{more}列出所有结果。",
            "用计算器算{a}×{b}。{more}写出每个结果。",
        ),
    },
}
THEN: Mapping[str, Mapping[Language, str]] = {
    "+": {"en": " Then add {c} to the result.", "zh": "再把结果加上{c}。"},
    "-": {"en": " Then subtract {c} from the result.", "zh": "再把结果减去{c}。"},
}
