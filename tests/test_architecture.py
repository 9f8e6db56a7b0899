"""The architecture, as a test. If it fails, the import is wrong or the rule is: change one on purpose.

In: the source tree. Out: a list of what breaks the rules below. Does not know: what the code does.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "deepfast"
MAY_IMPORT = {  # unit -> the other units it may import; cli and __init__ wire things up and are exempt
    "types": set(),
    "hf_config": {"types"},
    "config": {"types", "hf_config"},
    "text": {"types"},
    "thinking": {"types", "config"},
    "client_body": {"types"},
    "client_reply": {"types"},
    "client": {"types", "client_body", "client_reply"},
    "agent": {"types"},
    "backend": {"types", "config"},
    "model": {"types", "config", "text", "backend"},
    "engine": {"types", "config", "text", "thinking", "backend", "model"},
    "server": {"types", "config", "thinking", "engine"},
    "eval": {"types", "agent"},
    "train": {"types", "config", "text", "thinking", "backend", "model", "engine", "eval"},
}
SOURCES = {".py", ".cpp", ".h", ".html", ".js", ".css"}
DOORS = {  # third-party module -> the only places it may be imported
    "torch": {"backend/cuda.py", "backend/triton_ops.py", "train"},
    "triton": {"backend/triton_ops.py"},
    "numpy": {"backend", "model", "train", "eval"},
    "tokenizers": {"text/tokenizer.py", "train/tokenizer.py"},
    "transformers": {"train"},
    "trl": {"train"},
    "accelerate": {"train"},
    "datasets": {"train"},
    "matplotlib": {"train"},
    "pyarrow": {"train"},
    "jinja2": {"text/template.py"},
    "llguidance": {"text/grammar.py"},
    "click": {"cli"},
    "rich": {"cli"},
    "starlette": {"server"},
    "fastapi": {"server"},
    "pydantic": {"server"},
    "uvicorn": {"cli/serve.py"},
    "prometheus_client": {"server/metrics.py"},
    "markdown_it": {"server/render.py"},
    "mdit_py_plugins": {"server/render.py"},
    "latex2mathml": {"server/render.py"},
    "pygments": {"server/render.py"},
    "nh3": {"server/render.py"},
    "httpx": {"client.py", "cli/batch.py"},
    "mcp": {"agent/mcp.py"},
    "huggingface_hub": {"model/shelf.py"},
    "httpx2": {"model/shelf.py", "model/wire.py"},
    "filelock": {"model/download.py"},
}


def imports(path: Path) -> set[str]:
    """Absolute dotted names of everything the file imports, wherever in the file it does so."""
    here, found = path.relative_to(ROOT).with_suffix("").parts, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [*here[: -node.level]] if node.level else []
            base += [node.module] if node.module else []
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def test_imports_point_downhill_and_every_dependency_uses_its_door():
    bad = []
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        unit = name.split("/")[0].removesuffix(".py")
        for module in imports(path):
            top, _, rest = module.partition(".")
            other = rest.split(".")[0]
            if top == "deepfast" and other == "_C" and name != "backend/cpu.py":
                bad.append(f"{name} must not import the native module, only backend/cpu.py may")
            elif top == "deepfast" and unit in MAY_IMPORT and other not in MAY_IMPORT[unit] | {unit, "_C"}:
                bad.append(f"{name} must not import {module}")
            if top in DOORS and not {name, unit} & DOORS[top]:
                bad.append(f"{name} must not import {top}, only {sorted(DOORS[top])} may")
    assert not bad, "\n".join(sorted(bad))


def test_files_and_functions_stay_small():
    bad = []
    for path in [*PACKAGE.rglob("*.*"), *(ROOT / "csrc").iterdir(), *(ROOT / "recipes").rglob("*.py")]:
        if path.suffix in SOURCES and (lines := path.read_text().count("\n")) > 400:
            bad.append(f"{path.name} has {lines} lines")
        for node in ast.walk(ast.parse(path.read_text())) if path.suffix == ".py" else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if (lines := node.end_lineno - node.lineno + 1) > 60:
                    bad.append(f"{path.name}: {node.name} has {lines} lines")
    assert not bad, "\n".join(bad)


def test_every_file_says_what_it_is_for():
    bad = []
    for folder in ("deepfast", "recipes", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text())):
                bad.append(str(path.relative_to(ROOT)))
    bad += [p.name for p in (ROOT / "csrc").iterdir() if not p.read_text().startswith("//")]
    page = (PACKAGE / "server/page").iterdir()
    bad += [p.name for p in page if p.suffix in {".js", ".css"} and p.read_text()[:2] not in ("//", "/*")]
    assert not bad, f"no opening docstring or comment: {bad}"


def test_readme_tree_matches_disk():
    listed = set(re.findall(r"^    ([\w./-]+\.(?:py|cpp|h|html))\s", (ROOT / "README.md").read_text(), re.M))
    found = {p.name for d in ("deepfast", "csrc", "tests", "recipes") for p in (ROOT / d).rglob("*.*")}
    found = {n for n in found if n.endswith((".py", ".cpp", ".h", ".html")) and n != "__init__.py"}
    assert listed == found, f"README and disk disagree about {sorted(listed ^ found)}"


def skeleton(readme: str) -> dict[str, list[str]]:
    """What a translation leaves as it is."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    links = re.findall(r"\]\(([^)]+)\)", prose)
    return {
        "code": [code for kind, code in blocks if kind in ("sh", "python")],
        "commands, and the names in the tree": [
            re.split(r"(?<=\S)  |(?<=\.py) ", line)[0]
            for kind, shown in blocks
            if kind == "text"
            for line in shown.splitlines()
        ],
        "headings, list items and table rows": re.findall(r"^(?:#+|\*|\|)(?=[ -])", prose, re.M),
        "figures": sorted(re.findall(r"\d+(?:[.,]\d+)*", text)),
        "links": sorted(link for link in links if not link.startswith("README")),
    }


def test_the_chinese_readme_keeps_up():
    english, chinese = skeleton("README.md"), skeleton("README.zh-CN.md")
    for what, ours in english.items():
        assert ours == chinese[what], f"README.md and README.zh-CN.md differ in {what}"


def test_every_test_file_has_tests():
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = [n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
        assert any(name.startswith("test_") for name in names), f"{path.name} collects nothing"


def test_importing_the_package_does_no_work():
    heavy = ("numpy", "tokenizers", "jinja2", "llguidance", "rich", "torch")
    code = f"import sys, deepfast; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip() == "[]"
