"""Measures a model and writes its card: `python recipes/card.py --model DIR --stages build/nano --write`.

In: a checkpoint, the directory of the training stages. Out: the card as markdown on stdout; with --write also
in the model's README.md between two comments, with card.json and two pictures beside it. Killed, it goes on
from the parts that card.json holds. It knows nothing of how the model was trained.
"""

import argparse
import sys
import time
from pathlib import Path

from deepfast.model.hub import BUNDLED
from deepfast.train.answers import known_tasks
from deepfast.train.card import Place, Settings, measure_card, write_json
from deepfast.train.card_text import card, write_between
from deepfast.train.commands import one_line, require_extra

QUICK = 8


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument(
        "--model", type=Path, default=BUNDLED, help="model directory (default: the bundled one)"
    )
    made.add_argument("--stages", type=Path, help="the --work directory of the training recipes")
    made.add_argument("--count", type=int, help="problems per task, split and mode (default 100)")
    made.add_argument("--tasks", nargs="*", default=[], metavar="TASK", help="what to ask (default: all)")
    made.add_argument("--seed", type=int, default=0, help="another seed asks other problems")
    made.add_argument("--max-tokens", type=int, help="of one answer; without it the context is the limit")
    made.add_argument("--write", action="store_true", help="write the card into the model's directory")
    made.add_argument("--quick", action="store_true", help=f"{QUICK} problems instead of 100")
    return made


def run(args: argparse.Namespace) -> None:
    """Raises DeepfastError for what cannot be measured."""
    began = time.monotonic()
    if args.write:
        require_extra("matplotlib")
    count = args.count if args.count is not None else QUICK if args.quick else 100
    settings = Settings(count, args.seed, args.max_tokens)
    kept = args.model / "card.json" if args.write else None
    place = Place(kept, lambda text: print(text, file=sys.stderr, flush=True))
    results = measure_card(args.model, args.stages, settings, place, known_tasks(args.tasks))
    print(text := card(results, pictures=args.write))
    if args.write:
        from deepfast.train.card_plot import draw_card

        draw_card(results, args.model)
        write_between(args.model / "README.md", text)
        write_json(args.model / "card.json", results)
    print(f"measured in {time.monotonic() - began:.0f} s", file=sys.stderr)


def main() -> None:
    made = parser()
    args = made.parse_args()
    if args.quick and args.count is not None:
        made.error("--quick and --count contradict each other. Use one of them.")
    with one_line():
        run(args)


if __name__ == "__main__":
    main()
