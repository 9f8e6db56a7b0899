"""Exports problems and rewards for GRPO on Ray clusters: `python recipes/export_verl.py --out build/verl`.

In: tasks, sizes of the cluster, the hybrid model to train. Out: train.parquet, test.parquet (held out),
reward.py, grpo.yaml, and the command with which verl starts. verl is not needed here, but deepfast there, for
its verifiers. Problems with tools are left out.
"""

import argparse
from pathlib import Path

from deepfast.train import verl
from deepfast.train.commands import one_line
from deepfast.types import UsageError


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = verl.Cluster("", Path())
    parser.add_argument("--out", type=Path, default=Path("build/verl"), help="a directory that all nodes see")
    parser.add_argument(
        "--model", default="Qwen/Qwen3-0.6B", help="a checkpoint that thinks (default: %(default)s)"
    )
    parser.add_argument("--tasks", nargs="*", default=[], metavar="TASK", help="default: all without tools")
    parser.add_argument(
        "--train", type=int, default=16384, metavar="N", help="problems (default: %(default)s)"
    )
    parser.add_argument("--test", type=int, default=512, metavar="N", help="held out (default: %(default)s)")
    parser.add_argument(
        "--thinking", type=float, default=1.0, metavar="SHARE", help="asked to think, from 0 to 1"
    )
    parser.add_argument("--seed", type=int, default=0)
    for name in ("nodes", "gpus", "prompts", "group", "max_prompt", "max_response", "epochs"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(
            option, type=int, default=getattr(default, name), metavar="N", help="default: %(default)s"
        )
    return parser.parse_args()


def export(args: argparse.Namespace) -> verl.Cluster:
    """Writes the files. Raises UsageError for what makes no sense."""
    if not 0 <= args.thinking <= 1:
        raise UsageError(f"--thinking {args.thinking:g} is no share. Give one from 0 to 1.")
    if args.train < args.prompts:
        raise UsageError(
            f"--train {args.train} problems do not fill one step of {args.prompts} prompts. Ask for more."
        )
    if args.test < 1:
        raise UsageError(f"--test {args.test} is below 1. verl wants problems to validate on.")
    tasks, out = verl.exportable(args.tasks), args.out.resolve()
    sizes = (args.nodes, args.gpus, args.prompts, args.group, args.max_prompt, args.max_response, args.epochs)
    cluster = verl.Cluster(local(args.model), out, *sizes)
    out.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", args.train), ("test", args.test)):
        data = list(
            verl.rows(tasks, count, "train" if split == "train" else "test", args.seed, args.thinking)
        )
        verl.write_parquet(out / f"{split}.parquet", data)
    (out / "reward.py").write_text(verl.REWARD, encoding="utf-8")
    (out / "grpo.yaml").write_text(verl.settings(cluster), encoding="utf-8")
    return cluster


def local(model: str) -> str:
    """A directory by its whole path, since workers run elsewhere; a name as it is."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def main() -> None:
    """Exports and says how to start."""
    args = arguments()
    with one_line():
        cluster = export(args)
    print(f"{args.train} problems and {args.test} held-out ones written to {cluster.directory}")
    print(f"with verl {verl.VERSION} and deepfast on every node, start on the head node:")
    print(f"  {verl.launch(cluster)}")


if __name__ == "__main__":
    main()
