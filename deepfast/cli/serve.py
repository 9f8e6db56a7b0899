"""`deepfast serve`: models behind the APIs of OpenAI and Anthropic, and a chat page.

In: models, an address, keys and limits. Out: a server, until a signal: then it takes no more requests, lets
running ones finish for a stated time, aborts the rest and leaves with 0; a second signal leaves at once.
What it does goes to stderr. Does not know: routes, APIs.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..config import BUNDLED_NAME, ENV_API_KEYS, ENV_MODEL, LogFormat, ServerConfig
from ..types import EngineError, UsageError, as_size
from .options import LoadBar, engine_config, positive, tuning_options

if TYPE_CHECKING:
    import uvicorn

    from ..engine.llm import LLM
    from ..server.logs import Log
    from ..server.service import Model, Service
    from ..server.store import Store

DEFAULTS = ServerConfig()
PACKAGES = (  # of the extra `server`
    *("fastapi", "pydantic", "uvicorn", "prometheus_client", "httpx"),
    *("markdown_it", "mdit_py_plugins", "latex2mathml", "pygments", "nh3"),
)
FLUSH_SECONDS = 5  # for last bytes on their way to clients, after all answers have ended
KEEP_ALIVE = 75  # seconds that an idle connection stays open: longer than clients keep one
UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
WILDCARDS = ("0.0.0.0", "::")


def _bytes(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """10M -> bytes."""
    number = value.lower().rstrip("ib")
    unit = number[-1:] if number[-1:] in ("k", "m", "g") else ""
    number = number.removesuffix(unit)
    if not number.isdecimal():
        raise click.BadParameter(f"{value!r} is no size. Give bytes, or a number with k, M or G.")
    return int(number) * UNITS[unit]


@click.command()
@click.option(
    *("-m", "--model", "models"),
    multiple=True,
    metavar="[NAME=]MODEL",
    help="A model, as for `deepfast run`, and the name by which clients ask for it. Several may be given; "
    "the first one answers where none is named. "
    f"Default: {ENV_MODEL}, or the model that comes with Deepfast.",
)
@tuning_options
@click.option(
    "--remote",
    multiple=True,
    metavar="NAME=URL[,..]",
    help="A model at another endpoint of OpenAI's chat API (URL up to /v1). After commas may follow "
    "model=ID, dialect=WORD, key=VARIABLE (that holds the key), timeout=S. Repeatable.",
)
@click.option("--host", default=DEFAULTS.host, show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULTS.port, show_default=True, help="0: any free one."
)
@click.option(
    "--api-key", multiple=True, metavar="KEY", help="Let in who has this key. Several may be given."
)
@click.option(
    "--api-key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help=f"Keys, one on each line. {ENV_API_KEYS} holds some too, with commas.",
)
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Let pages of ORIGIN in ('*': all). Repeatable."
)
@click.option("--allow-host", multiple=True, metavar="NAME", help="Another name of this server. Repeatable.")
@click.option("--max-tokens", type=positive, metavar="N", help="At most N new tokens for one answer.")
@click.option("--max-running", type=positive, metavar="N", help="At most N answers in one batch.")
@click.option(
    "--max-queue",
    type=click.IntRange(min=0),
    default=DEFAULTS.max_queue,
    show_default=True,
    metavar="N",
    help="At most N answers wait; one more is told to come back.",
)
@click.option(
    "--max-body", default="10M", show_default=True, metavar="SIZE", callback=_bytes, help="Largest request."
)
@click.option(
    "--shutdown-seconds",
    type=click.FloatRange(min=0),
    default=DEFAULTS.shutdown_seconds,
    show_default=True,
    metavar="S",
    help="What running answers get to finish when the server is stopped.",
)
@click.option(
    "--store",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File that keeps answers of /v1/responses. Default: responses.sqlite3 in ~/.local/state/deepfast.",
)
@click.option("--store-limit", type=positive, metavar="N", help="Keep the last N answers. Default: 1000.")
@click.option("--no-store", is_flag=True, help="Keep no answers.")
@click.option("--log-prompts", is_flag=True, help="Put what clients send into the log.")
@click.option(
    "--log-format",
    type=click.Choice(get_args(LogFormat)),
    default=DEFAULTS.log_format,
    show_default=True,
    help="'auto' is text on a terminal, JSON elsewhere.",
)
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve the APIs of OpenAI and Anthropic, and a chat page.

    \b
    deepfast serve
    deepfast serve -m qwen3:4b
    deepfast serve -m small=qwen3:0.6b -m ~/models/Qwen3-4B-q4 --port 8080
    """
    _check_installed()
    from ..engine.llm import AsyncLLM
    from ..server.logs import Log

    config = server_config(options)
    log = Log(config.log_format)
    with _bind(config.host, config.port) as listener:  # before minutes of loading
        url = _url(config.host, listener.getsockname()[1])
        _warn(config, log)
        with _store(options, log) as store:
            named = _named(models)
            remotes = _remotes(options["remote"], named)
            loaded = _load(named, options, config, log)
            local = {name: AsyncLLM(llm) for name, llm in loaded.items()}
            try:
                _serve({**local, **remotes}, config, listener, url, log, store)
            finally:
                for llm in loaded.values():
                    llm.close()


def _check_installed() -> None:
    """Raises EngineError when the packages of the extra `server` are not there."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise EngineError(
                f"the server needs {package}, which is not installed. Run: pip install 'deepfast[server]'"
            )


def server_config(options: dict[str, Any]) -> ServerConfig:
    """The options as one value. Raises UsageError for what makes no sense."""
    keys = list(options["api_key"])
    if options["api_key_file"] is not None:
        lines = options["api_key_file"].read_text("utf-8-sig", "replace").splitlines()
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"{options['api_key_file']} holds no key. Write one on each line.")
        keys += found
    keys += [key.strip() for key in os.environ.get(ENV_API_KEYS, "").split(",") if key.strip()]
    names = ("host", "port", "max_tokens", "max_queue", "max_body", "shutdown_seconds")
    hosts: tuple[str, ...] = ()
    if _is_local(options["host"]) and not keys:
        hosts = (
            *dict.fromkeys(
                (options["host"], "127.0.0.1", "localhost", "::1", *_lower(options["allow_host"]))
            ),
        )
    return ServerConfig(
        **{name: options[name] for name in (*names, "log_prompts", "log_format")},
        api_keys=tuple(keys),
        cors=tuple(origin.rstrip("/") for origin in options["cors"]),  # browsers send it without
        hosts=hosts,
    )


def _lower(names: Iterable[str]) -> Iterator[str]:
    return (name.lower() for name in names)


@contextlib.contextmanager
def _store(options: dict[str, Any], log: Log) -> Iterator[Store | None]:
    """Where answers of /v1/responses are kept; None for nowhere. Raises UsageError for a file that cannot be
    used."""
    from ..server.store import KEPT, Store, default_path

    if options["no_store"]:
        if options["store"] is not None or options["store_limit"] is not None:
            raise UsageError("--no-store keeps nothing: drop --store and --store-limit, or --no-store.")
        yield None
        return
    store = Store(options["store"] or default_path(), options["store_limit"] or KEPT)
    try:
        text = f"answers of /v1/responses are kept in {store.path}, the last {store.kept} (--no-store: none)"
        log.say("info", text)
        yield store
    finally:
        store.close()


def _named(models: Iterable[str]) -> dict[str, str | None]:
    """Name -> directory, None for the bundled model. Raises UsageError for a name that comes twice."""
    given = list(models) or [model for model in (os.environ.get(ENV_MODEL),) if model]
    if not given:
        return {BUNDLED_NAME: None}
    found: dict[str, str | None] = {}
    for entry in given:
        name, equals, path = entry.partition("=")
        if not equals or "/" in name:
            name, path = Path(entry).expanduser().resolve().name, entry
        if name in found:
            raise UsageError(f"two models are named {name!r}. Name them: -m NAME={path}")
        found[name] = path
    return found


def _bind(host: str, port: int) -> socket.socket:
    """A socket on that address, which does not listen yet. Raises EngineError when it cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"host {host!r} is not known here. Give an address of this machine.") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        reason = (error.strerror or str(error)).lower()
        raise EngineError(
            f"port {port} of {host}: {reason}. Give another --host or --port (0: any free one)."
        ) from error
    return listener


def _url(host: str, port: int) -> str:
    name = "127.0.0.1" if host in WILDCARDS else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _warn(config: ServerConfig, log: Log) -> None:
    if not config.api_keys and not _is_local(config.host):
        text = "has no API key: whoever reaches this machine may use it. Add --api-key or --api-key-file"
        log.say("warning", f"{config.host} {text}.")


def _load(
    models: dict[str, str | None], options: dict[str, Any], config: ServerConfig, log: Log
) -> dict[str, LLM]:
    """Every model, after a look at the memory that they need. Raises UsageError when it is not there."""
    from .. import LLM
    from ..backend.machine import free_memory
    from .memory import plan

    chosen = {"max_running": options["max_running"], "max_new_tokens": config.max_tokens}
    settings = engine_config(options, **chosen)
    free = free_memory()
    needs = plan(models, options["quantize"], settings, free)
    for need in needs:
        fit = need.fit
        log.say("info", need.text, weights=fit.weights, kv=fit.kv, threads=need.settings.threads)
        for remark in fit.remarks(settings.max_context):
            log.say("warning", f"{need.name}: {remark}")
    log.say("info", f"memory: {as_size(sum(n.fit.total for n in needs))} of {as_size(free)} that are free")
    loaded: dict[str, LLM] = {}
    for need in needs:
        with LoadBar(f"loading {need.name}") as bar:
            model, format = models[need.name], options["quantize"]
            loaded[need.name] = LLM(model, quantize=format, config=need.settings, progress=bar)
        for text in loaded[need.name].notes:
            log.say("warning", f"{need.name}: {text}")
    return loaded


def _remotes(given: Iterable[str], taken: Container[str]) -> dict[str, Model]:
    """Models at other endpoints. Raises UsageError for a name that comes twice, and what is no endpoint."""
    from ..client import Endpoint, RemoteModel

    found: dict[str, Model] = {}
    for text in given:
        name, endpoint = Endpoint.parse(text)
        if name in found or name in taken:
            raise UsageError(f"two models are named {name!r}. Give the remote one another name.")
        found[name] = RemoteModel(endpoint)
    return found


def _serve(
    models: dict[str, Model],
    config: ServerConfig,
    listener: socket.socket,
    url: str,
    log: Log,
    store: Store | None,
) -> None:
    """Answer until a signal comes and all is over."""
    from ..engine.llm import AsyncLLM
    from ..server.app import create_app
    from ..server.service import Service

    local = [model.llm for model in models.values() if isinstance(model, AsyncLLM)]
    room = sum(llm.requests.settings.max_running for llm in local) + config.max_queue
    service = Service(models, max_requests=room)
    app = create_app(service, config, log, store)
    logging.getLogger().addHandler(forward := _forward(log))
    try:
        text = f"ready: {url} is the chat page, {url}/v1 the APIs; models: {', '.join(models)}; Ctrl-C stops"
        server = _uvicorn(app, lambda: log.say("info", text, url=url))
        asyncio.run(_until_stopped(server, service, config, listener, log))
    finally:
        logging.getLogger().removeHandler(forward)
    log.say("info", "stopped")


def _forward(log: Log) -> logging.Handler:
    from ..server.logs import Forward

    return Forward(log)


def _uvicorn(app: Any, ready: Callable[[], None]) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """Says when it listens, and leaves the signals to us."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            ready()

        def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
            return contextlib.nullcontext()

    settings = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        http="h11",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    return Server(settings)


async def _until_stopped(
    server: uvicorn.Server, service: Service, config: ServerConfig, listener: socket.socket, log: Log
) -> None:
    """Run the server; the first signal ends it in good order, the second one at once."""
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    async def stop() -> None:
        late = await service.drain(config.shutdown_seconds)
        if late:
            log.say("warning", f"{late} requests did not finish in {config.shutdown_seconds:g} s: aborted")
        server.should_exit = True

    def told(number: int) -> None:
        if stopping:
            log.say("warning", f"{signal.Signals(number).name} again: leaving at once")
            os._exit(128 + number)
        running = len(service.all_running)
        text = (
            f"{signal.Signals(number).name}: {running} requests get {config.shutdown_seconds:g} s to finish"
        )
        log.say("info", text)
        stopping.append(loop.create_task(stop()))

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, told, number)
    await server.serve(sockets=[listener])
    for model in service.models.values():
        if hasattr(model, "aclose"):  # a remote one
            await model.aclose()
