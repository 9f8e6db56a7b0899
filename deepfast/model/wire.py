"""HTTP to a hub: JSON of bounded size, files from any byte on, each failure as one line with a way out.

In: a client, an address, what it is asked for. Out: JSON, bytes; ModelError, or Passing for what may be
better a moment later. Does not know: which hub it is beyond its names, where bytes go.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx2

from ..types import ModelError

CONNECT_S, READ_S = 10.0, 30.0  # to begin, and between two pieces
PAUSE_S, LONGEST_S = 0.5, 30.0  # before the second attempt, doubled for each one after it
LOOK_UPS = 3  # attempts to read a list
MAX_JSON = 32 << 20  # bytes: a list of a hundred thousand files
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class Passing(Exception):
    """A failure that may pass. after: seconds that the server asked for."""

    def __init__(self, text: str, after: float | None = None) -> None:
        super().__init__(text)
        self.after = after

    def pause(self, failures: int) -> float:
        """Seconds to wait before the next attempt."""
        return min(self.after if self.after is not None else PAUSE_S * 2**failures, LONGEST_S)


@dataclass(frozen=True)
class Wire:
    """The way to one repository. title, endpoint: of the hub. elsewhere: advice for who can not reach it.
    token_variable, cache_variable: what a user sets. headers: sent with every request."""

    client: httpx2.Client = field(repr=False)
    title: str
    endpoint: str
    repo: str
    revision: str
    elsewhere: str
    token_variable: str
    cache_variable: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def host(self) -> str:
        """The server's name, for messages."""
        return urlsplit(self.endpoint).netloc

    def json(self, url: str) -> Any:
        """What `url` says. Raises ModelError when it can not be had, or is no JSON."""
        for attempt in range(LOOK_UPS):
            try:
                return self._json(url)
            except Passing as error:
                if attempt == LOOK_UPS - 1 or (error.after or 0) > LONGEST_S:
                    raise ModelError(f"{error} {self.elsewhere}") from error
                threading.Event().wait(error.pause(attempt))
        raise AssertionError

    def _json(self, url: str) -> Any:
        body = bytearray()
        with self._open(url, self.repo, {}) as response:
            for piece in self._pieces(response):
                body += piece
                if len(body) > MAX_JSON:
                    raise ModelError(
                        f"{self.host} sends a list of files beyond {MAX_JSON >> 20} MiB. "
                        "No model has that many; name another repository."
                    )
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ModelError(
                f"{self.host} answers, but not as {self.title} does. Is it one of its mirrors? "
                f"{self.elsewhere}"
            ) from error

    @contextmanager
    def stream(self, url: str, what: str, first: int) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The bytes of a file from `first` on: where they really begin, which may be 0, and the pieces."""
        wanted = {"Range": f"bytes={first}-"} if first else {}
        with self._open(url, what, wanted) as response:
            start = 0
            if response.status_code == 206:
                sent = re.match(r"bytes (\d{1,19})-", response.headers.get("content-range", ""))
                start = int(sent[1]) if sent else first
                if start != first:
                    raise Passing(f"{self.host} sends another part of {what} than the one asked for.")
            yield start, self._pieces(response)

    def _pieces(self, response: httpx2.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_bytes()
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise self._lost(error) from error

    @contextmanager
    def _open(self, url: str, what: str, more: Mapping[str, str]) -> Iterator[httpx2.Response]:
        headers = {**self.headers, **more, "Accept-Encoding": "identity"}
        timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
        try:
            request = self.client.build_request("GET", url, headers=headers, timeout=timeout)
            response = self.client.send(request, stream=True, follow_redirects=True)
        except (httpx2.LocalProtocolError, UnicodeError) as error:  # its text may hold the token
            raise ModelError(
                f"the request to {self.host} can not be sent. What {self.token_variable} holds is no token."
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._lost(error) from error
        try:
            if response.status_code == 416 and more:  # what is here is no beginning of what is there
                with self._open(url, what, {}) as whole:
                    yield whole
                return
            if response.status_code not in (200, 206):
                raise self._refused(response, what)
            yield response
        finally:
            response.close()

    def _lost(self, error: Exception) -> Exception:
        """No answer, or half of one."""
        if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL | httpx2.TooManyRedirects):
            reason = _brief(error)
            return ModelError(f"{self.host} points to where nothing can be fetched from ({reason}). Refused.")
        if isinstance(error, httpx2.ConnectTimeout):
            return Passing(f"{self.host} did not answer within {CONNECT_S:g} s.")
        if isinstance(error, httpx2.TimeoutException):
            return Passing(f"{self.host} sent nothing for {READ_S:g} s.")
        reason = _brief(error)
        if "CERTIFICATE" in reason:
            return ModelError(
                f"{self.host} can not be trusted ({reason}). Behind a proxy that opens connections, set "
                "SSL_CERT_FILE to its certificate."
            )
        return Passing(f"{self.host} can not be reached ({reason}).")

    def _refused(self, response: httpx2.Response, what: str) -> Exception:
        """An answer that is none. Error codes: those that Hugging Face sends in `X-Error-Code`."""
        status, code = response.status_code, response.headers.get("x-error-code", "")
        if status in AGAIN:
            return self._later(response)
        if code == "GatedRepo":
            return ModelError(
                f"{self.repo} is gated: accept its terms at {self.endpoint}/{self.repo}, then set "
                f"{self.token_variable} to your token."
            )
        if code == "RevisionNotFound":
            return ModelError(f"{self.repo} has no revision {self.revision!r}. Leave it out for the newest.")
        if code == "EntryNotFound" or (status in (404, 410) and what != self.repo):
            return ModelError(f"{self.repo} lists {what}, but {self.host} does not have it. Try again later.")
        if status in (401, 403) and what != self.repo:
            return ModelError(
                f"{response.url.host} says {status} to the request for {what} of {self.repo}. If it is "
                f"gated, accept its terms at {self.endpoint}/{self.repo} and set {self.token_variable} to "
                "your token; else the way to where its files are stored is blocked."
            )
        if status in (401, 403, 404, 410):
            return self.absent(f"{self.host} says {status}")
        return ModelError(f"{self.host} answers {status} to the request for {what}. {self.elsewhere}")

    def absent(self, reason: str) -> ModelError:
        """There is no such repository, as far as this user can see."""
        at = "" if self.revision in ("main", "master") else f" at revision {self.revision!r}"
        with_token = any(name.lower() in ("authorization", "cookie") for name in self.headers)
        private = "it is private, or the token is not accepted" if with_token else "it is private"
        return ModelError(
            f"{self.repo}{at} is not on {self.title} ({reason}), or {private}. "
            f"Check the spelling; for a private one set {self.token_variable} to a token that reads it."
        )

    def _later(self, response: httpx2.Response) -> Passing:
        limit = re.search(r"\bt=(\d+)", response.headers.get("ratelimit", ""))  # as Hugging Face says it
        text = response.headers.get("retry-after", limit[1] if limit and response.status_code == 429 else "")
        after = float(text) if text.isdecimal() and len(text) < 9 else None
        if response.status_code != 429:
            return Passing(f"{self.host} answers {response.status_code}: it has trouble now.", after)
        when = f" for {after:.0f} s" if after else ""
        return Passing(
            f"{self.host} asks to pause{when} (429, too many requests). With a token in "
            f"{self.token_variable} it allows more.",
            after,
        )


def _brief(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
