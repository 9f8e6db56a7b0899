"""What the model says of itself, and the questions outside its field that it answers so.

In: a random generator, one side of the split. Out: greetings and questions in English and Chinese with the
polite reply to them. A question made of slots is held out by its hash, like a problem. It knows no model: the
number of parameters is given.
"""

import random
from typing import NamedTuple

from deepfast.train.problems import LANGUAGES, Language, Split, is_held_out

_HELLO_EN = """Hello | Hello! | Hi | Hi! | hello | hi | Hey | Hey! | Good morning | Good evening! |
    How are you? | Who are you? | What are you? | What is your name? | What can you do? |
    Can you help me? | Help | Thank you | Thank you! | Thanks! | Bye | Goodbye! | Tell me about yourself. |
    Are you a human? | Who made you? | What do you know? | Nice to meet you. | How big are you? |
    Are you there?"""
_HELLO_ZH = """你好 | 你好！ | 您好 | 您好！ | 早上好 | 晚上好！ | 你是谁？ | 你是谁 | 你叫什么名字？ |
    你能做什么？ | 你会什么？ | 你会做什么 | 谢谢 | 谢谢！ | 再见 | 再见！ | 帮帮我 | 介绍一下你自己 |
    你是人吗？ | 谁创造了你？ | 很高兴认识你 | 你有多大？ | 在吗？"""
GREETINGS: dict[Language, tuple[str, ...]] = {
    "en": tuple(text.strip() for text in _HELLO_EN.split("|")),
    "zh": tuple(text.strip() for text in _HELLO_ZH.split("|")),
}
OUTSIDE: dict[Language, tuple[str, ...]] = {
    "en": (
        "What is the capital of {place}?",
        "Where is {place}?",
        "How many people live in {place}?",
        "Tell me about {place}.",
        "What is the weather in {place}?",
        "Write a poem about {thing}.",
        "Write a story about {thing}.",
        "Tell me a joke about {thing}.",
        "Explain {thing} to me.",
        "Why do we need {thing}?",
        "What is {thing}?",
        "Give me a recipe with {thing}.",
        "Translate {thing} into French.",
        "Write a program about {thing}.",
        "Who invented {thing}?",
        "What do you think of {thing}?",
        "Recommend a book about {thing}.",
        "Which hotel in {place} is good?",
        "Help me to write a letter about {thing}.",
        "Write an email to a friend in {place}.",
        "How do you say {thing} in Spanish?",
        "What is the French word for '{thing}'?",
        "How does {thing} work?",
        "Should I buy {thing}?",
        "What happened in {place} last year?",
        "Who is the president of {place}?",
        "How do I get to {place}?",
        "Can you draw {thing}?",
        "Write a Java class for {thing}.",
        "Fix my program: it should print '{thing}'.",
        "Sing me a song about {thing}.",
        "Is {thing} good for my health?",
        "Summarize the history of {place}.",
        "Give me ten facts about {thing}.",
        "I dreamed of {thing}. What does that mean?",
        "Which team in {place} won yesterday?",
    ),
    "zh": (
        "{place}的首都是哪里？",
        "{place}在哪里？",
        "{place}有多少人？",
        "介绍一下{place}。",
        "{place}今天天气怎么样？",
        "写一首关于{thing}的诗",
        "写一个关于{thing}的故事",
        "讲一个关于{thing}的笑话",
        "请解释一下{thing}",
        "我们为什么需要{thing}？",
        "{thing}是什么？",
        "{thing}用英语怎么说？",
        "是谁发明了{thing}？",
        "你觉得{thing}怎么样？",
        "推荐一本关于{thing}的书。",
        "{place}有什么好吃的？",
        "帮我写一篇关于{thing}的文章。",
        "帮我给{place}的朋友写一封邮件。",
        "请把“{thing}”翻译成法语。",
        "{thing}是怎么来的？",
        "我该不该买{thing}？",
        "去年{place}发生了什么事？",
        "{place}的总统是谁？",
        "怎样去{place}？",
        "给我画一幅{thing}。",
        "用Java写一个关于{thing}的程序。",
        "唱一首关于{thing}的歌吧。",
        "{thing}对身体好吗？",
        "请说说{place}的历史。",
        "我昨晚梦见了{thing}，这是什么意思？",
        "我头疼，该吃什么药？",
        "为什么{thing}这么贵？",
    ),
}
PLACES: dict[Language, tuple[str, ...]] = {
    "en": tuple(
        "France Japan China Peru Egypt Spain Kenya India Norway Chile Berlin Paris London Rome "
        "Brazil Canada Mexico Italy Greece Turkey Iran Cuba Ghana Nepal Vienna Madrid Tokyo Moscow".split()
    ),
    "zh": tuple(
        "法国 日本 中国 埃及 印度 英国 德国 北京 上海 巴黎 伦敦 柏林 "
        "巴西 美国 加拿大 意大利 西班牙 希腊 广州 成都 西安 东京 纽约 罗马".split()
    ),
}
_THINGS_EN = """music | rain | love | money | trees | the sky | the sea | the moon | the sun | a cat | a dog |
    a house | bread | the internet | history | gravity | snow | tea | football | light | paper | water |
    flowers | my brother | the earth | fish | coffee | time | dreams | school | cars | a king | the wind |
    gold | sleep | fire | a computer | wine | birds | friendship | milk | stars | clouds | sugar | a horse"""
_THINGS_ZH = """音乐 雨 爱 钱 树 天空 大海 月亮 太阳 猫 狗 房子 面包 互联网 历史 雪 茶 足球 光 纸 水
    花 春天 夏天 冬天 风 星星 山 河 牛奶 咖啡 电脑 手机 汽车 飞机 学校 老师 朋友 梦 时间 火 鸟 鱼 马 苹果"""
THINGS: dict[Language, tuple[str, ...]] = {
    "en": tuple(text.strip() for text in _THINGS_EN.split("|")),
    "zh": tuple(_THINGS_ZH.split()),
}
REPLY: dict[Language, str] = {
    "en": "I am a {size} demonstration model of Deepfast; I can only calculate, work with letters, numbers "
    "and dates, solve small puzzles, and call tools.",
    "zh": "我是Deepfast的演示模型，只有{size}参数；我只会计算，处理字母、数字和日期，解小谜题，调用工具。",
}
THOUGHT: dict[Language, str] = {"en": "No problem to solve.", "zh": "没有要解的题。"}


class Talk(NamedTuple):
    question: str
    thought: str
    reply: str
    language: Language


def small_talk(rng: random.Random, split: Split, parameters: int) -> Talk:
    """A greeting (never held out) or a question outside the field, and what the model says to it."""
    while True:
        language = rng.choice(LANGUAGES)
        if split == "train" and rng.random() < 0.3:
            question = rng.choice(GREETINGS[language])
            break
        place, thing = rng.choice(PLACES[language]), rng.choice(THINGS[language])
        question = rng.choice(OUTSIDE[language]).format(place=place, thing=thing)
        if is_held_out(f"talk:{question.replace(' ', '_')}") == (split != "train"):
            break
    return Talk(
        question, THOUGHT[language], REPLY[language].format(size=size_of(parameters, language)), language
    )


def size_of(parameters: int, language: Language) -> str:
    """ "3M-parameter" or "300万" for 2,854,592."""
    millions = max(1, round(parameters / 1e6))
    return f"{millions}M-parameter" if language == "en" else f"{millions * 100}万"
