"""Sums, differences and products worked out from the lowest digit, one line a column.

In: numbers of any length, none below zero. Out: lines of a trace. After each column stand the problem that is
left and the digits found so far, so that no line needs more than the one before: "8+6+0=14 47+25+1 4" says
that 47+25+1 remains and that the result ends in 4. It knows no question.
"""


def add_lines(a: int, b: int) -> list[str]:
    lines, carry, found = [f"{a}+{b}"], 0, ""
    x, y = a, b
    for left in range(max(len(str(a)), len(str(b))) - 1, -1, -1):
        column = x % 10 + y % 10 + carry
        step = f"{x % 10}+{y % 10}+{carry}={column}"
        x, y, carry, found = x // 10, y // 10, column // 10, f"{column % 10}{found}"
        lines.append(f"{step} {x}+{y}+{carry} {found}" if left else step)
    return [*lines, f"={a + b}"]


def subtract_lines(a: int, b: int) -> list[str]:
    """A smaller number from a larger one: "13-7-0=6 4-2-1 6" borrowed one for the next column."""
    lines, borrow, found = [f"{a}-{b}"], 0, ""
    x, y = a, b
    for left in range(len(str(a)) - 1, -1, -1):
        lent = int(x % 10 - y % 10 - borrow < 0)
        digit = x % 10 + 10 * lent - y % 10 - borrow
        step = f"{x % 10 + 10 * lent}-{y % 10}-{borrow}={digit}"
        x, y, borrow, found = x // 10, y // 10, lent, f"{digit}{found}"
        lines.append(f"{step} {x}-{y}-{borrow} {found}" if left else step)
    return [*lines, f"={a - b}"]


def times_digit_lines(a: int, digit: int) -> list[str]:
    lines, carry, found, x = [f"{a}*{digit}"], 0, "", a
    for left in range(len(str(a)) - 1, -1, -1):
        column = x % 10 * digit + carry
        step = f"{x % 10}*{digit}+{carry}={column}"
        x, carry, found = x // 10, column // 10, f"{column % 10}{found}"
        lines.append(f"{step} {x}*{digit}+{carry} {found}" if left else step)
    return [*lines, f"={a * digit}"]


def product_lines(a: int, b: int) -> list[str]:
    """Digit by digit of b from the lowest, each partial product added to the total at once. Before each
    stands what is left of b: "841*64" after the 7 of 841*647."""
    lines, total, left = [], 0, b
    for place, digit in enumerate(reversed(str(b))):
        if left > 9:
            lines.append(f"{a}*{left}")
        lines += times_digit_lines(a, int(digit))
        part = a * int(digit) * 10**place
        if place:
            lines += add_lines(part, total)
        total, left = total + part, left // 10
    return lines


def residues(number: int) -> str:
    """The running sum of the digits modulo nine: 478 -> "421". The last one is the number modulo nine."""
    running, shown = 0, ""
    for digit in str(number):
        running = (running + int(digit)) % 9
        shown += str(running)
    return shown


def nines(left: tuple[int, int], operator: str, right: int, rest: int | None = None) -> str:
    """Casts out nines: "Check: 478:421 256:274 1*4=4 122368:135854 ok" (+ rest, for a division)."""
    a, b = left
    x, y = a % 9, b % 9
    line = f"Check: {a}:{residues(a)} {b}:{residues(b)} "
    if rest is not None:
        line += f"{rest}:{residues(rest)} {x}*{y}+{rest % 9}={x * y + rest % 9}:{(x * y + rest) % 9}"
    elif operator == "*":
        line += f"{x}*{y}={x * y}:{x * y % 9}"
    else:
        line += f"{x}+{y}={x + y}:{(x + y) % 9}"
    return f"{line} {right}:{residues(right)} ok"
