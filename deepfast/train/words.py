"""Words that mean nothing to their problem: common English words, pseudo-words, random strings of letters
or of Chinese characters.

In: a `random.Random`. Out: one lower-case word of 2 to 12 letters, or 1 to 3 characters. It knows no problem,
phrasing or split.
"""

import random

COMMON: tuple[str, ...] = tuple(
    """
    able above accept across action actor address adult advice after again agree airport alarm album alien
    alive allow almost alone along already always amazing amount anchor ancient angel anger angle animal
    ankle answer apple april apron arena arrow artist asleep atlas aunt author autumn avocado awake baby
    bacon badge bakery balance balcony ball balloon bamboo banana banner barrel basket battery beach beard
    beauty because become bedroom beetle before begin behind believe bell below bench berry better between
    bicycle bird biscuit bitter blanket blood blossom blue board boat body bone book border boring borrow
    bottle bottom bowl branch brave bread breakfast breeze brick bridge bright bring broccoli brother
    brown brush bubble bucket buffalo building bullet bunny burger burn butter butterfly button cabbage
    cabin cable cactus cake calm camel camera camp canal candle candy canvas captain caramel carbon
    careful carpet carrot castle cattle ceiling celery cello center cereal chain chair chalk chance change
    chapter cheese cherry chess chicken child chili chimney chocolate choice church cinema cinnamon circle
    citizen city class clean clear clever climb clock cloud clover coat coconut coffee cold collar college
    color comb comet comfort committee common company compass computer concert cookie copper coral corner
    cotton couch country county courage cousin cover cow crab cradle crane crayon cream creek cricket
    crocodile crown cucumber culture cup curious curtain cushion cycle daily dairy dance danger daughter
    dawn deal decade december deep deer degree delight dentist desert desk dessert detail diamond diary
    dinner dinosaur direct dish doctor dog dolphin domino donkey door dragon drawer dream dress drift
    drink drum duck dust eager eagle early earth east easy echo effect effort egg eight elbow electric
    elephant eleven empty energy engine english enough envelope equal error escape evening event every
    exact example excellent excuse exit expert eye fabric face factory fairy family famous farmer fashion
    father favor feather february fellow fence ferry festival fever field fifteen fifty finger finish fire
    fish flag flame flavor flight floor flour flower flute focus foggy follow food foot forest forget fork
    forward fossil fountain fox freedom freeze fresh friday friend frog fruit future galaxy gallery game
    garage garden garlic gather gentle giant ginger giraffe glacier glass globe glory glove goal goat gold
    goose gorilla grammar grandmother grape grass gravity green grocery ground group guard guess guest
    guide guitar habit hammer hammock handle happen happy harbor harvest hat hazel health heart heavy
    hedge helmet hello hero hidden hill history hobby hollow honest honey hope horse hospital hotel hour
    house hundred hungry hurry ice idea igloo illness image inch indeed indigo infant insect inside island
    ivory jacket jaguar january jelly jewel jigsaw join joke journey judge juice july jump june jungle
    kangaroo kernel kettle keyboard kidney kind king kitchen kite kitten kiwi knee knife knock label
    ladder lady lake lamp language lantern laptop large later laugh laundry lawyer leader leaf lemon
    lesson letter lettuce level library life light lily lime lion liquid listen little lizard llama
    lobster local lonely loose lotus loud lucky luggage lunch machine magic magnet mango manner maple
    marble march market marmalade meadow meat medal melon member memory message metal meter middle
    midnight milk million mineral minute mirror missing mississippi mixture model modern moment monday
    money monkey month moon morning mosquito mother motor mountain mouse mouth movie muffin muscle museum
    mushroom music mustard narrow nation nature necklace needle neighbor nephew nerve nest never night
    nine noise noodle normal north nose notebook november number nurse oasis object ocean october octopus
    office often olive onion open opera orange orbit orchid order ordinary organ ostrich otter outside
    oven owner oxygen oyster packet paddle page paint palace pancake panda panther paper papaya parade
    parcel pardon parent parrot party passenger pasta patient pattern pause peace peach peacock peanut
    pear pebble pelican pencil penguin people pepper perfect person phone piano picnic picture pigeon
    pillow pilot pine pineapple pirate pizza planet plastic plate player pleasure plenty plum pocket poem
    poet police pond pony popcorn possess potato powder power present pretty prince problem promise proud
    pudding pumpkin puppy purple puzzle pyramid quality quarter queen question quick quiet quilt rabbit
    raccoon radio railway rain rainbow raspberry rather raven razor ready reason record referee regular
    remember repeat report rescue restaurant result return ribbon rice riddle ring river road robin robot
    rocket roof rooster rose rotten round royal rubber ruler runner sadness saddle safety sail salad
    salmon salt sample sandwich satellite saturday sauce scarf school science scissors season second
    secret senior sentence september settle seven shadow shallow shark sheep shelf shell shine ship shirt
    shoe short shoulder shower silence silver simple singer sister sixteen skate skill skirt sleep slipper
    slow smile smooth snail snake snow soap soccer socket soft soldier song sorry sound soup south
    spaghetti sparrow special speech spider spinach spirit spoon spring square squirrel stable stairs star
    station steam stone storm story strawberry stream street string strong student subject success sudden
    sugar summer sunday sunflower supper surprise swallow sweater sweet swim table tailor talent tangerine
    teacher teapot telephone temple tennis thank theater thing thirteen thirty thought thousand thread
    three thumb thunder thursday ticket tiger tiny toast today toffee tomato tomorrow tongue tooth topic
    torch tower towel town track tractor traffic train travel treasure tree triangle trip trouble truck
    trumpet trust tuesday tulip tunnel turkey turtle twelve twenty twin umbrella uncle under unique
    unicorn until upper useful usual vacation valley vanilla vegetable velvet verb very vessel village
    vinegar violet violin visit voice volcano vowel voyage waffle wagon waiter walnut walrus warm watch
    water watermelon weather wedding wednesday week weight welcome west whale wheat wheel whisper whistle
    white window winter wisdom wolf woman wonder wooden wool word worker world worry writer yellow
    yesterday yogurt young zebra zero zipper
    """.split()
)

_ONSETS = (
    "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sh sl sp st str th tr"
).split()
_VOWELS = "a e i o u a e i o ee oo ai ea ou".split()
_CODAS = ["", "", "", "", "n", "r", "s", "t", "l", "m", "ll", "ss", "tt", "rr", "ng", "ck", "p", "nd"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Half of all characters come from here, so that those which a tokenizer knows as one are met alone as well.
_EVERYDAY = (
    "天地日月星风云雨雪山水火土木石金花草树叶果米豆麦瓜菜茶油盐糖牛羊马鸟鱼虫龙虎鸡狗猫熊猴鼠人父母子女儿友王"
    "手足头目口耳心身衣帽鞋布线针刀书笔纸画琴鼓歌门窗床桌灯车船路桥城村房屋田园海河湖春夏秋冬东西南北上中大小"
    "多少长高老新红黄蓝白黑青光明声气电工力文字学生师医商农兵客家国年时分半双千百"
)
# The 3,755 common characters of GB 2312, in its order.
_CHARACTERS = bytes(
    byte for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) for byte in (row, cell)
).decode("gb2312", "ignore")


def draw_characters(rng: random.Random) -> str:
    """Chinese characters that make no word, mostly two."""
    length = rng.choice((1, 2, 2, 2, 3))
    return "".join(rng.choice(rng.choice((_EVERYDAY, _CHARACTERS))) for _ in range(length))


def draw_word(rng: random.Random) -> str:
    """A word: half of the time a common one, else made of syllables, else (rarely) random letters."""
    kind = rng.random()
    if kind < 0.5:
        return rng.choice(COMMON)
    if kind < 0.85:
        parts = (rng.choice(part) for _ in range(rng.randint(1, 3)) for part in (_ONSETS, _VOWELS, _CODAS))
        return "".join(parts)[:12]
    return "".join(rng.choice(_LETTERS) for _ in range(rng.randint(2, 9)))
