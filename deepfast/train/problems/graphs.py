"""Shortest paths in small graphs without weights.

In: a random generator, a level. Out: drafts and a judge that walks the path. The trace is a breadth-first
search: each line takes the first path of the queue and says its neighbours, which of them are new, who has
been seen and the queue that is left. It knows nothing of other tasks.
"""

import random
from collections.abc import Mapping

from deepfast.train.problems.base import Draft, Language, Phrases, Task, ask

PHRASES: Phrases = {
    "en": (
        "A graph has the edges {edges}. What is the shortest path from {a} to {b}?",
        "Edges: {edges}. Find a shortest path from {a} to {b}.",
        "Roads run between {edges}. What is the shortest way from {a} to {b}?",
        "Given the undirected edges {edges}, give the shortest path from {a} to {b}, or say that there "
        "is none.",
        "Find the shortest route from {a} to {b} in this graph: {edges}",
        "In a network with the links {edges}, how does one get from {a} to {b} in the fewest steps?",
        "Graph: {edges}. Shortest path {a} to {b}?",
        "Stations are linked as follows: {edges}. Which way from {a} to {b} has the fewest stops?",
        "The pairs {edges} are neighbours. Go from {a} to {b} in as few steps as possible.",
    ),
    "zh": (
        "一个图有这些边：{edges}。从{a}到{b}的最短路径是什么？",
        "边：{edges}。求{a}到{b}的一条最短路径。",
        "下列地点之间有路：{edges}。从{a}到{b}最短怎么走？",
        "无向图的边为{edges}，请给出从{a}到{b}的最短路径，没有就说没有。",
        "在这个图中找出{a}到{b}的最短路线：{edges}",
        "网络中的连接有{edges}，从{a}到{b}最少几步，怎么走？",
        "图：{edges}。{a}到{b}的最短路？",
        "车站之间的线路：{edges}。从{a}到{b}怎样经过的站最少？",
    ),
}
NONE: Mapping[Language, str] = {"en": "no path", "zh": "没有路"}
SIZES = {1: (4, 5), 2: (6, 7), 3: (8, 9), 4: (10, 12)}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

Graph = dict[str, list[str]]


def draw_graph(rng: random.Random, nodes: list[str], extra: int) -> Graph:
    """A random tree, sometimes without one edge, and some edges more; neighbours in alphabetical order."""
    edges = set()
    for at in range(1, len(nodes)):
        edges.add((nodes[at], nodes[rng.randrange(max(0, at - 3), at)]))
    if rng.random() < 0.2:
        edges.discard(rng.choice(sorted(edges)))
    for _ in range(extra):
        a, b = rng.sample(nodes, 2)
        if (b, a) not in edges:
            edges.add((a, b))
    graph: Graph = {node: [] for node in nodes}
    for a, b in edges:
        graph[a].append(b)
        graph[b].append(a)
    return {node: sorted(neighbours) for node, neighbours in graph.items()}


def search(graph: Graph, start: str, goal: str) -> tuple[list[str], list[str]]:
    """The lines of a breadth-first search and a shortest path, empty when there is none."""
    queue, seen, lines = [[start]], [start], [f"{start} to {goal}"]
    while queue:
        path = queue.pop(0)
        neighbours = graph[path[-1]]
        new = [node for node in neighbours if node not in seen]
        line = f"{'-'.join(path)}: {' '.join(neighbours) or '0'}; new {' '.join(new) or '0'}"
        if goal in new:
            return [*lines, f"{line}; goal"], [*path, goal]
        seen += new
        queue += [[*path, node] for node in new]
        lines.append(f"{line}; seen {' '.join(seen)}; queue {' '.join(map('-'.join, queue)) or '0'}")
    return lines, []


def distance(graph: Graph, start: str, goal: str) -> int:
    """The number of edges of a shortest path; -1: there is none."""
    reached, border, steps = {start}, {start}, 0
    while border:
        if goal in border:
            return steps
        border = {node for near in border for node in graph[near]} - reached
        reached |= border
        steps += 1
    return -1


def make(rng: random.Random, level: int, language: Language) -> Draft:
    count = rng.randint(*SIZES[level])
    nodes = rng.sample(_LETTERS[: max(count + 2, 8)], count)
    graph = draw_graph(rng, nodes, rng.randint(1, 1 + count // 2))
    start, goal = rng.sample(nodes, 2)
    if distance(graph, start, goal) == 1 and rng.random() < 0.7:
        return make(rng, level, language)
    lines, path = search(graph, start, goal)
    edges = sorted({(min(a, b), max(a, b)) for a in graph for b in graph[a]})
    if path:
        answer = "-".join(path)
        steps = " ".join(f"{a}-{b}" for a, b in zip(path, path[1:], strict=False))
        lines.append(f"Check: {steps} {len(path) - 1} steps ok")
    else:
        answer = NONE[language]
        lines.append(f"Check: queue empty, {goal} not seen ok")
    shuffled = [f"{a}-{b}" if rng.random() < 0.5 else f"{b}-{a}" for a, b in edges]
    rng.shuffle(shuffled)
    question = ask(rng, PHRASES, language, edges=", ".join(shuffled), a=start, b=goal)
    names = "".join(f"{a}{b}" for a, b in edges)
    ends = f"{start}{goal}"
    return Draft(question, lines, answer, f"{count}.{names}.{''.join(sorted(ends))}|{ends}")


def judge(key: str, answer: str) -> bool:
    """The nodes of a path along edges, as short as any, parted by dashes, arrows, commas or spaces."""
    names, _, ends = key.partition("|")
    names = names.split(".")[1]
    graph: Graph = {node: [] for node in names + ends}
    for a, b in zip(names[::2], names[1::2], strict=True):
        graph[a].append(b)
        graph[b].append(a)
    shortest = distance(graph, ends[0], ends[1])
    if shortest < 0:
        return answer.lower().rstrip("!") in (
            "no path",
            "there is no path",
            "none",
            "没有路",
            "没有",
            "没有路径",
        )
    for arrow in ("->", "→", "\\to", "\\rightarrow", ">", ","):
        answer = answer.replace(arrow, "-")
    path = [node.strip() for node in answer.split("-" if "-" in answer else " ")]
    if len(path) != shortest + 1 or path[0] != ends[0] or path[-1] != ends[1]:
        return False
    return all(b in graph.get(a, ()) for a, b in zip(path, path[1:], strict=False))


TASKS = (Task("path", (1, 2, 3), make, judge),)
