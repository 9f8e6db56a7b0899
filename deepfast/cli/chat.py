"""`deepfast chat`: a conversation in the terminal.

In: lines from a person (or a pipe: one message per line). Out: answers on stdout, thoughts and chatter on
stderr. Ctrl-C during an answer stops that answer: what was said stays in the conversation; a turn that had
said nothing yet is dropped. Ctrl-C twice at the prompt, or Ctrl-D, leaves. Does not know: how models run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..types import ContextError, Delta, Message, Mode, SamplingParams, Thinking, UsageError
from .options import engine_options, open_llm, sampling_params, thinking, thinking_options
from .terminal import Printer, note, summary

if TYPE_CHECKING:
    from ..engine.llm import LLM

HELP = """\
/think        think before every answer
/no_think     answer at once
/auto         the model decides, or /think and /no_think inside a message
/budget N     at most N tokens of thought; /budget off lifts the limit
/system TEXT  set the system message; nothing after it removes it
/clear        forget the conversation
/quit         leave (also Ctrl-D, or Ctrl-C twice)
A line that ends in \\ goes on in the next one. A space before '/' sends the line as text.
Ctrl-C stops an answer; what was said stays in the conversation."""


@click.command()
@engine_options
@thinking_options
def chat(**options: Any) -> None:
    """Talk with a model; thoughts are dimmed. /help lists what you can type."""
    params, wish = sampling_params(options), thinking(options)
    interactive = sys.stdin.isatty()
    with open_llm(options) as llm:
        talk = Conversation(llm, params, wish, options["system"] or "")
        if interactive:
            note(f"{llm.name}, loaded in {llm.load_seconds:.1f} s. /help for commands, Ctrl-D to leave.")
            _edit_lines()
        _loop(talk, interactive)


def _edit_lines() -> None:
    """Arrow keys, history and pasting of many lines at the prompt, where the platform has them."""
    try:
        import readline
    except ImportError:
        return
    readline.parse_and_bind("set enable-bracketed-paste on")


def _loop(talk: Conversation, interactive: bool) -> None:
    interrupted = False
    while not talk.done:
        try:
            line = _ask(interactive)
            interrupted = False
        except EOFError:
            break
        except KeyboardInterrupt:
            if not interactive or interrupted:
                break
            interrupted = True
            note("\n(Ctrl-C again, or Ctrl-D, to leave)")
            continue
        try:
            talk.take(line)
        except ContextError as error:
            _refuse(error, " Type /clear to start over.", interactive)
        except UsageError as error:
            _refuse(error, "", interactive)
    if interactive:
        note("")


def _refuse(error: UsageError, hint: str, interactive: bool) -> None:
    """Tell a person and go on; a script gets the exit code of the error."""
    if not interactive:
        raise error
    click.echo(f"deepfast: error: {error}{hint}", err=True)


def _ask(interactive: bool) -> str:
    """One message; a trailing backslash continues it on the next line. Raises EOFError at the end."""
    lines: list[str] = []
    while True:
        mark = ("... " if lines else ">>> ") if interactive else ""
        if mark and not sys.stdout.isatty():
            click.echo(mark, err=True, nl=False)
            mark = ""
        lines.append(input(mark))
        if not lines[-1].endswith("\\"):
            return "\n".join(lines)
        lines[-1] = lines[-1][:-1]


class Conversation:
    """The messages so far and the settings that slash commands change."""

    def __init__(self, llm: LLM, params: SamplingParams, wish: Thinking, system: str) -> None:
        """An empty conversation with `llm`."""
        self.llm, self.params = llm, params
        self.mode: Mode = wish.mode
        self.budget = wish.budget
        self.system = system
        self.messages: list[Message] = []
        self.done = False

    def take(self, line: str) -> None:
        """Obey a command or answer a message. Raises UsageError when it can't; nothing has changed then."""
        if line.startswith("/"):
            self._command(*line.partition(" ")[::2])
        elif line.strip():
            self._answer(line.strip())

    def _command(self, name: str, rest: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "/budget": self._set_budget,
            "/system": self._set_system,
            "/think": lambda _: self._set_mode("on"),
            "/no_think": lambda _: self._set_mode("off"),
            "/auto": lambda _: self._set_mode("auto"),
            "/clear": lambda _: self._clear(),
            "/help": lambda _: note(HELP),
            "/quit": lambda _: self._quit(),
        }
        if name not in commands:
            raise UsageError(
                f"{name} is no command; /help lists them. Put a space before it to send it as text."
            )
        if rest.strip() and name not in ("/budget", "/system"):
            raise UsageError(f"{name} stands alone on its line. Send the message on the next one.")
        commands[name](rest.strip())

    def _set_budget(self, text: str) -> None:
        if text != "off" and not text.isdecimal():
            raise UsageError(f"/budget {text}: expected a number of tokens from 0 on, or off.")
        self.budget = None if text == "off" else int(text)
        later = ", as soon as it thinks again (/think)" if self.mode == "off" and text != "off" else ""
        note("no limit on the thought" if text == "off" else f"at most {text} tokens of thought{later}")

    def _set_mode(self, mode: Mode) -> None:
        self.mode = mode
        says = {
            "on": "thinking before every answer",
            "off": "answering at once",
            "auto": "the model's own default",
        }
        note(says[mode])

    def _set_system(self, text: str) -> None:
        self.system = text
        note("system message set" if text else "no system message")

    def _clear(self) -> None:
        self.messages.clear()
        note("conversation forgotten")

    def _quit(self) -> None:
        self.done = True

    def _answer(self, text: str) -> None:
        asked = Message("user", text)
        system = [Message("system", self.system)] if self.system else []
        wish = Thinking(mode=self.mode, budget=None if self.mode == "off" else self.budget)
        stream = self.llm.stream([*system, *self.messages, asked], self.params, wish)
        pieces, stopped = list[Delta](), False
        try:
            with Printer() as printer:
                for delta in stream:
                    pieces.append(delta)
                    printer.show(delta)
        except KeyboardInterrupt:
            stream.cancel()
            stopped = True
        note("[stopped]" if stopped else summary(stream.completion))
        said = {kind: "".join(d.text for d in pieces if d.kind == kind) for kind in ("reasoning", "content")}
        if said["content"] or not stopped:
            self.messages += [asked, Message("assistant", said["content"], said["reasoning"] or None)]
