"""The texts that speculation.py replays: thoughts with and without repetition, written for it.

In: nothing. Out: name -> (question, thought). "worked" is the format of the bundled model's own thoughts;
"quoted" reads a piece of code and goes back to it, as thoughts about code do; "prose" says nothing twice.
Does not know: tokens, models.
"""

import random

from deepfast.train.problems import sample

CODE = """\
```python
def merge(left, right):
    result, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            i += 1
    return result
```"""

QUOTED = f"""\
The function under question is:

{CODE}

The user says that merge([1, 4], [2, 3]) returns [1, 2] and wants [1, 2, 3, 4]. Let me go through it. We \
begin with result = [], i = 0, j = 0. In the first round left[i] is 1 and right[j] is 2, so left[i] <= \
right[j] holds, result.append(left[i]) makes result = [1], and i += 1 makes i = 1. In the second round \
left[i] is 4 and right[j] is 2, so left[i] <= right[j] does not hold, result.append(right[j]) makes result \
= [1, 2], and then i += 1 makes i = 2. But that should be j += 1. Now i < len(left) does not hold, the \
loop ends, and we return result, which is [1, 2]. So the first mistake is that the second branch has i += \
1 instead of j += 1. With j += 1 the third round has left[i] = 4 and right[j] = 3, result.append(right[j]) \
makes result = [1, 2, 3], and j += 1 makes j = 2. Now j < len(right) does not hold, the loop ends, and we \
return result, which is [1, 2, 3]. The second mistake is that what is left over is never added. So the \
function becomes:

```python
def merge(left, right):
    result, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            result.append(left[i])
            i += 1
        else:
            result.append(right[j])
            j += 1
    return result + left[i:] + right[j:]
```

Let me check it with merge([1, 4], [2, 3]). The first round makes result = [1], the second round makes \
result = [1, 2], the third round makes result = [1, 2, 3]. Then the loop ends and we return result + \
left[i:] + right[j:], which is [1, 2, 3] + [4] + [] = [1, 2, 3, 4]. That is what the user wants."""

PROSE = """\
Nobody in the valley could say when the mill had stopped turning. Some held that it was the \
spring flood which tore the sluice away; older neighbours remembered a lawsuit about fishing rights, and a \
miller too proud to settle. Whatever happened, brambles took over quickly. By the time Ruth inherited the \
place, swallows nested beneath every beam, and an elder tree had pushed its crown through half the roof. \
She arrived on a Tuesday with two suitcases, a borrowed ladder and absolutely no plan. Her brother, who \
drove the van, laughed until he noticed she was serious. They slept in the kitchen that first night, \
listening to rain find new ways indoors. Next morning she walked along the dry channel, counting broken \
stones, and discovered something odd: fresh mortar, carefully smoothed, where everyone swore no mason had \
worked for sixty years. Who repairs a ruin secretly? She asked at the bakery. The baker shrugged, wrapped \
her loaf, then mentioned a retired engineer living above the quarry. His name was Anselm. He answered her \
knock wearing slippers, poured coffee without asking whether she wanted any, and admitted everything. As a \
boy he had carried grain sacks there during summer holidays. Water wheels, he explained, fail slowly, from \
the bearings outward; a patient person might reverse that. So each autumn he replaced a little, telling \
nobody, because permission would have required finding an owner. Ruth considered being angry. Instead she \
showed him the drawings her grandmother kept inside a hymn book, which nobody had ever managed to read. \
Anselm put on his glasses, fell silent for several minutes, and finally whispered that these solved a \
puzzle he had carried since childhood."""


def worked_thoughts(count: int = 6) -> str:
    """Products, each worked out digit by digit."""
    rng = random.Random(7)
    return "\n\n".join(sample("product", rng, "test", 5, "en").trace for _ in range(count))


TEXTS = {
    "worked": ("Work these out, please.", worked_thoughts()),
    "quoted": (f"merge([1, 4], [2, 3]) returns [1, 2]; I want [1, 2, 3, 4]. Why?\n\n{CODE}", QUOTED),
    "prose": ("Tell me a story of a mill.", PROSE),
}
