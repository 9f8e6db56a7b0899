"""What a person sees while a model is fetched: what and how much before it begins, then a bar on a terminal,
or now and then a line elsewhere. All of it on stderr.

In: the reports of model/hub.py. Out: where the model lies. Does not know: hubs, files, commands.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from ..types import as_size
from .terminal import note

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..model.download import Fetching
    from ..model.hub import Found

LINE_SECONDS = 2.0  # between two lines where there is no terminal


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
        self.tenths, self.began, self.last = 0, 0.0, 0.0
        self.waited: set[str] = set()
        self.fetched = self.running = False

    def __enter__(self) -> FetchBar:
        """Nothing to prepare."""
        return self

    def __call__(self, at: Fetching) -> None:
        """Show where it stands."""
        here, all_of_it = as_size(at.done), as_size(at.total)
        if at.state == "start":
            note(f"fetching {at.repo}: {all_of_it}" + (f"; {here} of it are here" if at.done else ""))
            self._start(at)
        elif at.state == "end":
            if self.progress is not None:
                self.progress.stop()  # the next bar needs the terminal
            self.running = False
            note(f"fetched {at.repo} in {time.monotonic() - self.began:.0f} s")
        elif at.state == "wait" and at.file not in self.waited:
            self.waited.add(at.file)
            self._say(f"another program fetches {at.file}; waiting for it")
        elif at.state == "again":
            self._say(f"{at.file} arrived damaged and is fetched again")
        elif self.progress is not None:
            self.progress.update(self.progress.task_ids[0], completed=at.done)
        elif time.monotonic() - self.last >= LINE_SECONDS and at.done * 10 // (at.total or 1) > self.tenths:
            self.last, self.tenths = time.monotonic(), at.done * 10 // (at.total or 1)
            note(f"{at.repo}: {self.tenths * 10} %, {here} of {all_of_it}")

    def _start(self, at: Fetching) -> None:
        self.fetched = self.running = True
        self.began = self.last = time.monotonic()
        self.tenths = at.done * 10 // (at.total or 1)
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

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        """Take the bar away; who interrupts is told that nothing is lost."""
        if self.progress is not None:
            self.progress.stop()
        if self.running and kind is not None and issubclass(kind, KeyboardInterrupt):
            note("interrupted; what came is kept, the same command goes on with it")
