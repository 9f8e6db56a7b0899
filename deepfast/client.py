"""A model behind HTTP: an endpoint that speaks OpenAI's chat API, as a ChatModel or as a model of the server.

In: an Endpoint, messages, sampling, a wish for the thought. Out: Deltas and Completions, as from a model of
our own. What the endpoint's dialect has no word for is refused by name, and nothing is sent. Errors are one
line; keys are never part of one. Does not know: engines, the server, terminals.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from .client_body import DIALECTS, chat_body
from .client_reply import Reader, error_text
from .types import (
    Completion,
    ControlError,
    DeepfastError,
    Delta,
    EngineError,
    Message,
    SamplingParams,
    Thinking,
    UsageError,
    Variant,
)

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 600.0  # a large model on a CPU may read a long prompt for minutes
Tools = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is. url: up to and with /v1. dialect: how it spells what OpenAI has no word for
    ("deepfast", "vllm", "llamacpp", "dashscope", "openrouter", or "openai" for none of it). timeout: seconds
    of silence that are borne. Raises UsageError when the URL or the dialect makes no sense."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    dialect: str = "openai"
    timeout: float = SILENCE_SECONDS

    def __post_init__(self) -> None:
        """Refuse what cannot be an endpoint."""
        if self.dialect not in DIALECTS:
            raise UsageError(f"dialect={self.dialect!r} is unknown. Use one of {', '.join(DIALECTS)}.")
        try:
            url = httpx.URL(self.url)
        except (httpx.InvalidURL, TypeError) as error:
            raise UsageError("the URL of the endpoint is no URL. Give http://HOST:PORT/v1.") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise UsageError(f"{self.name} is no address. Give http://HOST:PORT/v1.")
        if not self.timeout > 0:
            raise UsageError(f"timeout={self.timeout:g} is no time. Give seconds, more than 0.")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise UsageError(f"the API key for {self.name} is not printable ASCII. Give it as you got it.")

    @classmethod
    def parse(cls, text: str) -> tuple[str, Endpoint]:
        """NAME=URL[,model=ID][,dialect=WORD][,key=VARIABLE][,timeout=S] -> the name and the endpoint. model:
        as it is called there, NAME if left out; key: the environment variable that holds it."""
        head, *rest = text.split(",")
        name, equals, url = head.partition("=")
        given = {key: value for key, _, value in (item.partition("=") for item in rest)}
        if not equals or not name or "/" in name or set(given) - {"model", "dialect", "key", "timeout"}:
            form = "NAME=URL[,model=ID][,dialect=WORD][,key=VARIABLE][,timeout=S]"
            raise UsageError(f"{name!r} is no remote model. Give {form}.")
        key = os.environ.get(given["key"]) if "key" in given else None
        if "key" in given and not key:
            raise UsageError(
                f"the environment variable {given['key']} for {name!r} is empty. Put the key there."
            )
        try:
            seconds = float(given.get("timeout", SILENCE_SECONDS))
        except ValueError:
            raise UsageError(f"timeout={given['timeout']} of {name!r} is no number. Give seconds.") from None
        return name, cls(url, given.get("model", name), key, given.get("dialect", "openai"), seconds)

    @property
    def name(self) -> str:
        """The URL without secrets, for errors."""
        return str(httpx.URL(self.url).copy_with(username=None, password=None, query=None)).rstrip("/")

    def options(self) -> dict[str, Any]:
        """Of a client of httpx."""
        headers = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        timeout = httpx.Timeout(self.timeout, connect=CONNECT_SECONDS)
        return {"headers": headers, "timeout": timeout}

    def path(self, path: str) -> str:
        """The URL of something below."""
        return f"{self.url.rstrip('/')}/{path}"

    def refused(self, response: httpx.Response) -> DeepfastError:
        """The error behind a response that was read and is no success."""
        status, text = response.status_code, self._without_key(error_text(response.text))
        if status in (401, 403):
            return EngineError(f"{self.name} does not accept the API key ({status}): {text}")
        if status == 404:
            return UsageError(
                f"{self.name} has no such thing (404): {text} Check the URL and model {self.model!r}."
            )
        if status == 429:
            wait = response.headers.get("retry-after", "")
            when = f"in {wait} s" if wait.isdigit() else "later"
            return EngineError(f"{self.name} takes no more requests now (429): {text} Try again {when}.")
        if 400 <= status < 500:
            return UsageError(f"{self.name} refuses the request: {text}")
        return EngineError(f"{self.name} failed ({status}): {text}")

    def broke(self, error: httpx.HTTPError) -> EngineError:
        """The error behind a connection that could not be made or held."""
        if isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout):
            return EngineError(f"{self.name} did not answer within {CONNECT_SECONDS:g} s. Is it running?")
        if isinstance(error, httpx.TimeoutException):
            return EngineError(f"{self.name} said nothing for {self.timeout:g} s. Try again, or wait longer.")
        if isinstance(error, httpx.ConnectError):
            return EngineError(f"{self.name} cannot be reached: {error or 'no connection'}. Is it running?")
        return EngineError(f"the connection to {self.name} broke: {type(error).__name__}. Try again.")

    def _without_key(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


class RemoteChat:
    """A ChatModel for evaluation and agents; `with` closes its connections."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._client = httpx.Client(**endpoint.options())

    def chat(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
        tool_choice: str = "auto",
    ) -> Completion:
        """Answer at once. Raises UsageError when the endpoint refuses, EngineError when it fails."""
        reader = Reader(self.endpoint.name, params, thinking)
        for _ in self._deltas(reader, messages, params, thinking, tools, tool_choice):
            pass
        return reader.completion()

    def stream(
        self,
        messages: str | Sequence[Message],
        params: SamplingParams | None = None,
        thinking: Thinking | None = None,
        tools: Tools | None = None,
        tool_choice: str = "auto",
    ) -> Iterator[Delta]:
        """Answer piece by piece; leaving early closes the connection, which ends the request there."""
        reader = Reader(self.endpoint.name, params, thinking)
        return self._deltas(reader, messages, params, thinking, tools, tool_choice)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> RemoteChat:
        """Nothing is connected yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def _deltas(
        self,
        reader: Reader,
        messages: str | Sequence[Message],
        params: SamplingParams | None,
        thinking: Thinking | None,
        tools: Tools | None,
        tool_choice: str,
    ) -> Iterator[Delta]:
        end = self.endpoint
        body = chat_body(
            end.name, end.dialect, end.model, messages, Variant(params, thinking), tools, tool_choice
        )
        try:
            with self._client.stream("POST", end.path("chat/completions"), json=body) as response:
                if not response.is_success:
                    response.read()
                    raise end.refused(response)
                for text in response.iter_text():
                    for line in reader.lines(text):
                        yield from reader.push(line)
                for line in reader.lines("\n"):
                    yield from reader.push(line)
                yield from reader.finish()
        except httpx.HTTPError as error:
            raise end.broke(error) from error


class RemoteModel:
    """A model of the server's Service, as AsyncLLM is one. Belongs to one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._client: httpx.AsyncClient | None = None

    async def open(
        self,
        messages: Sequence[Mapping[str, Any]],
        variants: Sequence[Variant],
        tools: Tools | None = None,
        tool_choice: str = "auto",
    ) -> list[RemoteStream]:
        """Start to answer in every way asked for, each in a request of its own. Raises UsageError when one
        of them is refused, EngineError when the endpoint fails; then none goes on."""
        end = self.endpoint
        bodies = [
            chat_body(end.name, end.dialect, end.model, messages, variant, tools, tool_choice)
            for variant in variants
        ]
        readers = [Reader(end.name, variant.params, variant.thinking) for variant in variants]
        if self._client is None:
            # No connection outlives its answer, so that none is left when the loop ends.
            one_each = httpx.Limits(max_keepalive_connections=0)
            self._client = httpx.AsyncClient(**end.options(), limits=one_each)
        client = self._client
        sending = [asyncio.ensure_future(self._send(client, body)) for body in bodies]
        try:
            responses = await asyncio.gather(*sending)
        except BaseException:
            for task in sending:
                task.cancel()
            for result in await asyncio.gather(*sending, return_exceptions=True):
                if isinstance(result, httpx.Response):
                    await result.aclose()
            raise
        return [RemoteStream(end, client, *pair) for pair in zip(responses, readers, strict=True)]

    async def count_tokens(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: Thinking | None = None,
        tools: Tools | None = None,
        tool_choice: str = "auto",
    ) -> int:
        """Refused: the tokens of another server are not known here."""
        raise UsageError(
            f"tokens cannot be counted for {self.endpoint.name}: it is remote. Name a local model."
        )

    async def open_raw(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[RemoteStream]:
        """Refused: ids mean nothing to an endpoint whose tokens are not known here."""
        raise UsageError(f"{self.endpoint.name} is remote and continues no raw prompts. Use a chat API.")

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _send(self, client: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        """The response, with its body still to come."""
        end = self.endpoint
        try:
            request = client.build_request("POST", end.path("chat/completions"), json=body)
            response = await client.send(request, stream=True)
            if response.is_success:
                return response
            try:
                await response.aread()
                raise end.refused(response)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise end.broke(error) from error


class RemoteStream:
    """One answer of an endpoint on its way: Deltas, then the Completion. `aclose` ends it there too."""

    def __init__(
        self, endpoint: Endpoint, client: httpx.AsyncClient, response: httpx.Response, reader: Reader
    ) -> None:
        self._endpoint, self._client, self._response, self._reader = endpoint, client, response, reader
        self._items: asyncio.Queue[Delta | Completion | DeepfastError] = asyncio.Queue()
        self._begun = asyncio.Event()  # something came, or the end
        self._ended = False
        self._task = asyncio.create_task(self._read())
        self._task.add_done_callback(self._finish)

    def __aiter__(self) -> AsyncIterator[Delta | Completion]:
        """Deltas, then the Completion."""
        return self

    async def __anext__(self) -> Delta | Completion:
        """Wait for the next item. Raises EngineError when the endpoint failed."""
        if self._ended:
            raise StopAsyncIteration
        item = await self._items.get()
        self._ended = not isinstance(item, Delta)
        if isinstance(item, DeepfastError):
            raise item
        return item

    def cancel(self) -> None:
        """End it; iteration ends with what came before."""
        self._task.cancel()

    async def aclose(self) -> None:
        """End it and close the connection."""
        self._ended = True
        self.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._response.aclose()

    async def end_thought(self) -> None:
        """Close the thought now. Raises ControlError where the endpoint is no Deepfast, or cannot."""
        await self._steer({"action": "end"})

    async def extend_thought(self, tokens: int) -> None:
        """Let the thought go on for at least `tokens` more. Raises as end_thought."""
        await self._steer({"action": "extend", "tokens": tokens})

    async def set_budget(self, budget: int | None) -> None:
        """Change the budget of the thought. Raises as end_thought."""
        await self._steer({"action": "budget", "budget": budget})

    async def hint(self, text: str) -> None:
        """Put `text` into the thought. Raises as end_thought."""
        await self._steer({"action": "hint", "text": text})

    async def _steer(self, body: dict[str, Any]) -> None:
        end = self._endpoint
        if end.dialect != "deepfast":
            raise ControlError(f"{end.name} is no Deepfast server: a thought there cannot be steered.")
        await self._begun.wait()
        if self._reader.id is None or self._task.done():
            raise ControlError("the thought is over: it can only be steered while it runs.")
        try:
            path = end.path(f"chat/completions/{self._reader.id}/control")
            response = await self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise end.broke(error) from error
        if response.status_code in (400, 404):
            raise ControlError(error_text(response.text))
        if not response.is_success:
            raise end.refused(response)

    async def _read(self) -> None:
        try:
            async for text in self._response.aiter_text():
                for line in self._reader.lines(text):
                    self._put(self._reader.push(line))
            for line in self._reader.lines("\n"):
                self._put(self._reader.push(line))
            self._put(self._reader.finish())
        except httpx.HTTPError as error:
            raise self._endpoint.broke(error) from error
        finally:
            await self._response.aclose()

    def _put(self, deltas: Sequence[Delta]) -> None:
        if self._reader.id is not None:
            self._begun.set()
        for delta in deltas:
            self._items.put_nowait(delta)

    def _finish(self, task: asyncio.Task[None]) -> None:
        """However the reading ended, whoever waits is told."""
        self._begun.set()
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._items.put_nowait(self._reader.completion(aborted=task.cancelled()))
        elif isinstance(error, DeepfastError):
            self._items.put_nowait(error)
        else:
            self._items.put_nowait(EngineError(f"reading from {self._endpoint.name} failed: {error!r}"))
