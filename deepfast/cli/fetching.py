"""What a person sees while a model is fetched: what and how much before it begins, then a bar on a terminal,
or a line for every tenth of it elsewhere. All of it on stderr.

In: the reports of model/hub.py. Out: where the model lies. Does not know: hubs, files, commands.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .terminal import note

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..model.download import Fetching
    from ..model.hub import Found


def locate(model: str | None, **more: Any) -> Found:
    """Where a model lies. What is not here is fetched in sight of the user; more: for `hub.find`."""
    from ..model import hub

    with FetchBar() as bar:
        found = hub.find(model, report=bar, **more)
    if found.note:
        note(f"[{found.note}]")
    return found


class FetchBar:
    """Follows one download."""

    def __init__(self) -> None:
        """Nothing is shown, and rich not imported, before something is fetched."""
        self.progress: Progress | None = None
        self.tenths = 0
        self.waited: set[str] = set()
        self.fetched = False

    def __enter__(self) -> FetchBar:
        """Nothing to prepare."""
        return self

    def __call__(self, at: Fetching) -> None:
        """Show where it stands."""
        from .show import size  # it imports the options, which import this

        if at.state == "start":
            self._start(
                f"{at.repo}: {size(at.total)}" + (f"; {size(at.done)} of it are here" * (at.done > 0)), at
            )
        elif at.state == "wait" and at.file not in self.waited:
            self.waited.add(at.file)
            self._say(f"another program fetches {at.file}; waiting for it")
        elif at.state == "again":
            self._say(f"{at.file} arrived damaged and is fetched again")
        elif self.progress is not None and at.state == "end":
            self.progress.stop()  # the next bar needs the terminal
        elif self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=at.done)
        elif at.total and at.done * 10 // at.total > self.tenths:
            self.tenths = at.done * 10 // at.total
            note(f"{at.repo}: {self.tenths * 10} %, {size(at.done)} of {size(at.total)}")

    def _start(self, what: str, at: Fetching) -> None:
        self.fetched = True
        note(f"fetching {what}")
        self.tenths = at.done * 10 // at.total if at.total else 0
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
            from rich.progress import TransferSpeedColumn as Speed

            columns = (BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
            self.progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self.progress.add_task("fetch", total=at.total, completed=at.done)
            self.progress.start()

    def _say(self, text: str) -> None:
        if self.progress is not None:
            self.progress.console.print(text, style="dim", highlight=False, markup=False)
        else:
            note(text)

    def __exit__(self, *exc: object) -> None:
        """Take the bar away."""
        if self.progress is not None:
            self.progress.stop()
