"""`deepfast chat`: a conversation in the terminal.

In: lines from a person (or a pipe: one message per line). Out: answers on stdout, thoughts and chatter on
stderr. Ctrl-C ends an open thought, and the answer follows; during an answer it stops the answer.
What was said stays in the conversation; a turn that had said nothing yet is dropped. Ctrl-C twice at the
prompt, or Ctrl-D, leaves. Does not know: how models run.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from ..types import ContextError, ControlError, Delta, Message, Mode, SamplingParams, Thinking, UsageError
from .options import engine_options, open_llm, sampling_params, thinking, thinking_options
from .terminal import Printer, note, summary

if TYPE_CHECKING:
    from types import FrameType

    from ..engine.chat_stream import ChatStream
    from ..engine.llm import LLM

MAX_DIGITS = 9  # of a number of tokens
HELP = """\
/think        think before every answer
/no_think     answer at once
/auto         the model decides, or /think and /no_think inside a message
/budget N     at most N tokens of thought; /budget off lifts the limit
/min N        a thought shorter than N tokens goes on; /min off lets it end
/system TEXT  set the system message; nothing after it removes it
/clear        forget the conversation
/quit         leave (also Ctrl-D, or Ctrl-C twice)
A line that ends in \\ goes on in the next one. A space before '/' sends the line as text.
Ctrl-C ends the thought and lets the model answer; during an answer it stops the answer.
What was said stays in the conversation."""


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
        self.limits = replace(wish, mode="auto", source="")  # in force whenever it thinks
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
            "/min": self._set_min,
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
        if rest.strip() and name not in ("/budget", "/min", "/system"):
            raise UsageError(f"{name} stands alone on its line. Send the message on the next one.")
        commands[name](rest.strip())

    def _set_budget(self, text: str) -> None:
        number = _number("/budget", text)
        self.limits = replace(self.limits, budget=number)
        note(
            "no limit on the thought"
            if number is None
            else f"at most {number} tokens of thought{self._when()}"
        )

    def _set_min(self, text: str) -> None:
        number = _number("/min", text) or 0
        self.limits = replace(self.limits, min_tokens=number)
        note(
            f"at least {number} tokens of thought{self._when()}"
            if number
            else "a thought may end at any time"
        )

    def _when(self) -> str:
        return ", as soon as it thinks again (/think)" if self.mode == "off" else ""

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
        off = Thinking(mode="off", on_loop=self.limits.on_loop)
        wish = off if self.mode == "off" else replace(self.limits, mode=self.mode)
        turn = Turn(self.llm.stream([*system, *self.messages, asked], self.params, wish))
        done = turn.show()
        note(summary(turn.stream.completion) if done else "[stopped]")
        said = {
            kind: "".join(d.text for d in turn.pieces if d.kind == kind) for kind in ("reasoning", "content")
        }
        calls = turn.stream.completion.tool_calls if done else ()
        if said["content"] or done:
            answer = Message("assistant", said["content"], said["reasoning"] or None, calls)
            self.messages += [asked, answer]


class Turn:
    """One answer on its way to the terminal. Ctrl-C ends the thought that is shown; once more, the turn."""

    def __init__(self, stream: ChatStream) -> None:
        """Nothing is shown yet."""
        self.stream = stream
        self.pieces: list[Delta] = []
        self.steered = self.told = False  # was the thought ended by hand, and has the person been told?

    def show(self) -> bool:
        """Print it as it comes. False when the person stopped it."""
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, self._interrupt) if in_main else None
        try:
            with Printer() as printer:
                for delta in self.stream:
                    self.pieces.append(delta)
                    if self.steered and not self.told:
                        printer.interject("(thought ended; Ctrl-C again to stop the answer)")
                        self.told = True
                    printer.show(delta)
        except KeyboardInterrupt:
            self.stream.cancel()
            return False
        finally:
            if in_main:
                signal.signal(signal.SIGINT, before)
        return True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C. Nothing is printed here: it may have come in the middle of a print."""
        thinks = bool(self.pieces) and self.pieces[-1].kind == "reasoning"
        if self.steered or not thinks:
            raise KeyboardInterrupt
        self.steered = True
        try:
            self.stream.end_thought()
        except ControlError:  # it has just ended by itself
            pass


def _number(name: str, text: str) -> int | None:
    if text == "off":
        return None
    if not text.isdecimal() or len(text) > MAX_DIGITS:
        raise UsageError(f"{name} {text}: expected a number of tokens from 0 on, or off.")
    return int(text)
