"""Names and phrasings of river crossings.

In: a random generator, a language. Out: rowers, items, groups and the sentences of a puzzle. Any noun may
stand beside any other, and invented words too, so that a name tells nothing about a conflict. It knows no
search.
"""

import random
from collections.abc import Iterable, Mapping, Sequence

from deepfast.train.problems.base import Language, Phrases, ask
from deepfast.train.words import draw_characters, draw_word

ROWERS: Mapping[Language, Sequence[str]] = {
    "en": "farmer man woman traveller boatman girl boy merchant shepherd robot pilot monk gardener".split(),
    "zh": "农夫 男人 女人 旅人 船夫 女孩 男孩 商人 牧羊人 机器人 园丁 和尚".split(),
}
CLASSIC: Mapping[Language, Sequence[str]] = {
    "en": (
        "wolf goat cabbage lion sheep fox chicken grain tiger rabbit carrot dog cat mouse bean cheese"
    ).split(),
    "zh": "狼 山羊 白菜 狮子 绵羊 狐狸 鸡 谷子 老虎 兔子 胡萝卜 狗 猫 老鼠 豆子 奶酪".split(),
}
ITEMS: Mapping[Language, Sequence[str]] = {
    "en": (
        "wolf goat cabbage lion sheep fox chicken grain tiger rabbit carrot dog cat mouse bean cheese "
        "bear horse "
        "cow pig duck goose snake frog eagle owl monkey panda zebra camel donkey crab lobster turtle "
        "penguin apple "
        "banana melon pumpkin potato tomato onion pepper corn lettuce rose tulip cactus candle lamp "
        "clock violin "
        "drum flute robot dragon unicorn ghost wizard witch knight pirate king queen book letter map "
        "key coin "
        "ring crown sword shield bottle cake pie cookie honey milk egg fish shark whale spider ant bee "
        "bird parrot "
        "piano hat scarf umbrella ladder hammer bucket kite ball doll statue mirror"
    ).split(),
    "zh": (
        "狼 山羊 白菜 狮子 绵羊 狐狸 鸡 谷子 老虎 兔子 胡萝卜 狗 猫 老鼠 豆子 奶酪 熊 马 牛 猪 鸭 鹅 "
        "蛇 青蛙 老鹰 "
        "猫头鹰 猴子 熊猫 斑马 骆驼 驴 螃蟹 龙虾 乌龟 企鹅 苹果 香蕉 西瓜 南瓜 土豆 番茄 洋葱 辣椒 "
        "玉米 生菜 玫瑰 "
        "仙人掌 蜡烛 台灯 闹钟 小提琴 鼓 笛子 龙 独角兽 幽灵 巫师 骑士 海盗 国王 王后 书 信 地图 钥匙 "
        "硬币 戒指 "
        "王冠 剑 盾牌 瓶子 蛋糕 馅饼 饼干 蜂蜜 牛奶 鸡蛋 鱼 鲨鱼 鲸 蜘蛛 蚂蚁 蜜蜂 小鸟 鹦鹉 钢琴 帽子 "
        "围巾 雨伞 "
        "梯子 锤子 水桶 风筝 皮球 娃娃 雕像 镜子"
    ).split(),
}
GROUPS: Mapping[Language, Sequence[tuple[str, str]]] = {  # (who must not be outnumbered, by whom)
    "en": (
        ("missionaries", "cannibals"),
        ("missionaries", "cannibals"),
        ("sheep", "wolves"),
        ("guards", "prisoners"),
        ("elves", "orcs"),
        ("humans", "zombies"),
        ("mice", "cats"),
        ("rabbits", "foxes"),
        ("merchants", "robbers"),
        ("knights", "dragons"),
        ("goats", "lions"),
        ("teachers", "monsters"),
        ("fish", "sharks"),
        ("nurses", "vampires"),
    ),
    "zh": (
        ("传教士", "野人"),
        ("传教士", "野人"),
        ("绵羊", "狼"),
        ("警察", "小偷"),
        ("精灵", "兽人"),
        ("人类", "僵尸"),
        ("老鼠", "猫"),
        ("兔子", "狐狸"),
        ("商人", "强盗"),
        ("骑士", "恶龙"),
        ("山羊", "狮子"),
        ("老师", "怪兽"),
        ("护士", "吸血鬼"),
    ),
}
COUNTS: Mapping[Language, Sequence[str]] = {
    "en": ("no", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    "zh": ("零", "一", "两", "三", "四", "五", "六", "七", "八"),
}
STORY: Phrases = {
    "en": (
        "A {rower} has to cross a river with {items}. The boat holds the {rower} and at most {boat}. "
        "{conflicts}{ask}",
        "{Items} must be taken over a river by a {rower}, who alone can row. Besides the {rower} the "
        "boat has "
        "room for {boat}. {conflicts}{ask}",
        "A {rower} stands at a river with {items}. In the small boat the {rower} can take {boat} at most. "
        "{conflicts}{ask}",
        "River crossing: {items}, one {rower} to row, room for {boat} beside the {rower}. {conflicts}{ask}",
        "On the left bank are a {rower}, {items}. Only the {rower} rows; each trip carries up to {boat}. "
        "{conflicts}{ask}",
        "There are {items} to bring across a river. A {rower} rows the boat, which takes {boat} per trip. "
        "{conflicts}{ask}",
    ),
    "zh": (
        "一个{rower}要带着{items}过河。船上除了{rower}最多再带{boat}。{conflicts}{ask}",
        "{rower}要把{items}运到河对岸，只有{rower}会划船，每次最多带{boat}。{conflicts}{ask}",
        "{rower}带着{items}来到河边，小船除{rower}外只能装{boat}。{conflicts}{ask}",
        "过河问题：{items}，由{rower}划船，船上还能放{boat}。{conflicts}{ask}",
        "左岸有{rower}和{items}，只有{rower}能划船，每趟至多带{boat}。{conflicts}{ask}",
        "要把{items}送过河，{rower}划船，一次最多运{boat}。{conflicts}{ask}",
    ),
}
CONFLICT: Phrases = {
    "en": (
        "Left alone, the {x} eats the {y}. ",
        "The {x} and the {y} must not be left alone together. ",
        "Without the {rower}, the {x} attacks the {y}. ",
        "Never leave the {x} with the {y} unattended. ",
        "The {x} cannot stay with the {y} when the {rower} is away. ",
        "The {x} would ruin the {y} if nobody watches. ",
    ),
    "zh": (
        "没人看着时，{x}会吃{y}。",
        "{x}和{y}不能单独留在一起。",
        "{rower}不在时，{x}会攻击{y}。",
        "不能让{x}和{y}在无人看管时待在同一岸。",
        "{rower}离开后，{x}不能跟{y}在一起。",
        "如果没人看管，{x}会弄坏{y}。",
    ),
}
PEACE: Phrases = {
    "en": ("", "They all get along. ", "Nothing harms anything. "),
    "zh": ("", "它们互不伤害。", "它们都能和平相处。"),
}
GROUP_STORY: Phrases = {
    "en": (
        "{p} {x} and {q} {y} want to cross a river in a boat for at most {boat} people. On neither "
        "bank may the "
        "{x}, if there are any, be outnumbered by the {y}. {ask}",
        "{p} {x} and {q} {y} stand at a river. The boat holds {boat} at most and needs at least one to row. "
        "Wherever there are more {y} than {x}, the {x} are eaten, unless there are none. {ask}",
        "River crossing with {p} {x} and {q} {y}: the boat takes one to {boat} of them, and on no bank "
        "may {y} "
        "outnumber {x} who are there. {ask}",
        "Bring {p} {x} and {q} {y} over a river. Boat: {boat} places, somebody must row. The {x} on a "
        "bank must "
        "never be fewer than the {y} there (no {x} is fine). {ask}",
    ),
    "zh": (
        "{p}个{x}和{q}个{y}要过河，船最多坐{boat}个。任何一岸只要有{x}，{y}的数量就不能超过{x}。{ask}",
        "河边有{p}个{x}和{q}个{y}，船最多载{boat}个，至少要有一个划船。哪一岸{y}比{x}多，{x}就会被吃掉（没有{x}则无妨）。{ask}",
        "过河问题：{p}个{x}，{q}个{y}，船可坐一到{boat}个，任一岸上有{x}时{y}不得多于{x}。{ask}",
        "把{p}个{x}和{q}个{y}送过河，船有{boat}个位子，必须有人划。岸上的{x}不能少于{y}（没有{x}除外）。{ask}",
    ),
}
HOW: Phrases = {
    "en": (
        "How do they all get across?",
        "How can everything be brought over?",
        "What is a plan?",
        "Give a plan.",
    ),
    "zh": ("怎样才能全部过河？", "怎么把它们都运过去？", "请给出方案。", "该怎么做？"),
}
WHETHER: Phrases = {
    "en": (
        'Is it possible, and how? If not, answer "impossible".',
        'Can it be done? Give a plan or answer "impossible".',
        'Find a plan, or answer "impossible" if there is none.',
    ),
    "zh": (
        "能做到吗？怎么做？做不到就回答“不可能”。",
        "有可能吗？给出方案，或回答“不可能”。",
        "请给出方案，没有办法就回答“不可能”。",
    ),
}
FORM: Phrases = {
    "en": (
        " List the cargo of every trip, there and back in turn: names joined by +, - for none, "
        "semicolons between.",
        " Write one entry per trip (over, back, over, ...), semicolons between; join names by +, write "
        "- for none.",
    ),
    "zh": (
        "按来回顺序列出每趟运的东西，用分号隔开，多样用+连接，空船写-。",
        "每趟写一项（去、回、去……），用分号隔开；同趟的用+连接，没有就写-。",
    ),
}
GROUP_FORM: Phrases = {
    "en": (
        " Write every trip, there and back in turn, as {x}+{y} in numbers, with semicolons between.",
        " List the trips (over, back, over, ...) as number of {x} + number of {y}, semicolons between.",
    ),
    "zh": (
        "按来回顺序把每趟写成“{x}数+{y}数”，用分号隔开。",
        "列出每趟（去、回、去……）的{x}数+{y}数，用分号隔开。",
    ),
}
_LINKS = set("和跟")  # what stands between two names in a sentence
IMPOSSIBLE: Mapping[Language, str] = {"en": "impossible", "zh": "不可能"}


def draw_names(rng: random.Random, count: int, language: Language) -> list[str]:
    """Different names of items: the old ones, any nouns, or invented words.

    Names of Chinese characters that were never met are what a small model copies worst: they come more often.
    """
    kind = rng.random()
    if kind < 0.3:
        return rng.sample(CLASSIC[language], count)
    if kind < (0.85 if language == "en" else 0.65):
        return rng.sample(ITEMS[language], count)
    names: dict[str, None] = {}
    while len(names) < count:
        name = draw_word(rng) if language == "en" else draw_characters(rng)
        if not _LINKS & set(name):
            names[name] = None
    return list(names)


def _listed(names: Sequence[str], language: Language) -> str:
    if language == "zh":
        return "、".join(names[:-1]) + ("和" if len(names) > 1 else "") + names[-1]
    named = [f"{'a' if name[0] not in 'aeiou' or name.startswith('uni') else 'an'} {name}" for name in names]
    return f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]


def item_question(
    rng: random.Random,
    language: Language,
    names: Sequence[str],
    conflicts: Iterable[tuple[int, int]],
    boat: int,
    whether: bool,
) -> str:
    """The puzzle in words. conflicts: numbers of names from 1, in the order in which they are told."""
    rower = rng.choice([rower for rower in ROWERS[language] if rower not in names])
    phrase = {
        **CONFLICT,
        language: [rng.choice(CONFLICT[language])] if rng.random() < 0.4 else CONFLICT[language],
    }
    told = ""
    for x, y in conflicts:
        told += ask(rng, phrase, language, x=names[x - 1], y=names[y - 1], rower=rower)
    count = COUNTS[language][boat]
    items = _listed(names, language)
    return ask(
        rng,
        STORY,
        language,
        rower=rower,
        items=items,
        Items=items[0].upper() + items[1:],
        boat=f"{count} of them" if language == "en" else f"{count}样",
        conflicts=told or ask(rng, PEACE, language),
        ask=ask(rng, WHETHER if whether else HOW, language) + ask(rng, FORM, language),
    )


def group_question(
    rng: random.Random,
    language: Language,
    sizes: tuple[int, int],
    names: tuple[str, str],
    boat: int,
    whether: bool,
) -> str:
    x, y = names
    number = COUNTS[language]
    text = ask(
        rng,
        GROUP_STORY,
        language,
        p=number[sizes[0]],
        q=number[sizes[1]],
        x=x,
        y=y,
        boat=number[boat],
        ask=ask(rng, WHETHER if whether else HOW, language) + ask(rng, GROUP_FORM, language, x=x, y=y),
    )
    return text[0].upper() + text[1:]
