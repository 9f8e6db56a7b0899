"""Our engine on the weights of a model that is being trained, in the same process.

In: a `transformers` model, the directory of its tokenizer files, prompts as ids. Out: continuations drawn
from the model's own distribution, many at once. The weights are read from the model's tensors, not from
files: `refresh` after every update. It knows no messages, no tools and no trainer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deepfast.backend.cpu import CpuBackend
from deepfast.backend.machine import available_cpus
from deepfast.config import BLOCK_SIZE, EngineConfig, ModelConfig
from deepfast.engine.engine import Engine
from deepfast.engine.kv_cache import BlockPool
from deepfast.engine.llm import control_ids
from deepfast.engine.request import RequestBuilder
from deepfast.engine.runner import Runner
from deepfast.engine.scheduler import Scheduler
from deepfast.engine.sequence import Sequence as Request
from deepfast.model.decoder import Decoder
from deepfast.model.tensors import FloatArray, Matrix, finite
from deepfast.model.weights import Checkpoint
from deepfast.text.files import TextFiles
from deepfast.text.tokenizer import Tokenizer
from deepfast.types import Delta, ModelError, SamplingParams, UsageError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Ask(NamedTuple):
    """Continue `ids` by at most `limit` tokens; equal seeds draw equal tokens from equal weights."""

    ids: Sequence[int]
    limit: int
    seed: int


class Drawn(NamedTuple):
    """New ids, the one that ended the turn included, and their log-probabilities where they were asked
    for."""

    ids: list[int]
    logprobs: list[float] | None


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """How the engine draws. temperature 1 with top_p 1 and top_k 0 is the policy's own distribution, 0 is
    greedy.

    threads None: all that are there. running: sequences computed together. context: positions of a sequence
    at most; kv_tokens: positions of all of them, those beyond wait their turn. speculation: guess repeated
    text ahead; what is drawn stays the same.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    logprobs: bool = False
    threads: int | None = None
    running: int = 64
    context: int = 1024
    kv_tokens: int = 48 * 1024
    speculation: bool = False


class LiveMatrix(Matrix):
    """A matrix of the model in memory."""

    def __init__(self, name: str, tensor: Any) -> None:
        self.name, self._tensor = name, tensor
        self.shape = int(tensor.shape[0]), int(tensor.shape[1])
        self.nbytes, self.stored = 4 * tensor.numel(), "f32"

    def rows(self, first: int, last: int) -> FloatArray:
        """float32 [last - first, K]"""
        return _floats(self.name, self._tensor[first:last])


class LiveTensors:
    """The state dict of a model as a Source: nothing is copied before it is packed."""

    def __init__(self, tensors: Mapping[str, Any], path: Path) -> None:
        self._tensors, self._path = tensors, path
        self.size = sum(4 * tensor.numel() for tensor in tensors.values())

    def names(self) -> list[str]:
        """Every tensor."""
        return list(self._tensors)

    def where(self, name: str) -> Path:
        """The directory of the tokenizer, for messages."""
        return self._path

    def shape(self, name: str) -> tuple[int, ...]:
        """[M, K] or [n]"""
        return tuple(int(n) for n in self._tensors[name].shape)

    def nbytes(self, name: str) -> int:
        """As float32."""
        return 4 * int(self._tensors[name].numel())

    def kind(self, name: str) -> str:
        """The tensor's type."""
        return str(self._tensors[name].dtype)

    def matrix(self, name: str) -> Matrix:
        """A matrix."""
        return LiveMatrix(name, self._tensors[name])

    def vector(self, name: str) -> FloatArray:
        """A norm weight or a bias, [n]."""
        return _floats(name, self._tensors[name])

    def release(self) -> None:
        """There are no file pages."""


class LiveEngine:
    """Draws from a model that is trained. The engine runs in the caller's thread, and only inside `draw`.

    Raises UsageError where the model's tensors are not whole in this process, ModelError for a model that the
    engine cannot run, and for weights that hold no numbers any more.
    """

    def __init__(self, model: Any, directory: Path, settings: DrawSettings) -> None:
        self.model, self.settings = model, settings
        self._path = directory
        self._text = TextFiles.from_dir(directory)
        self.tokenizer = Tokenizer.of(self._text)
        self._config = _config(model)
        self._eos = _eos(model, self._config)
        context = min(settings.context, self._config.max_positions)
        engine = EngineConfig(
            kv="f32",
            max_context=context,
            max_kv_tokens=max(settings.kv_tokens, context),
            max_running=settings.running,
            max_batch_tokens=max(512, 4 * settings.running),
            speculation=settings.speculation,
            threads=settings.threads,
        ).resolve(self._config, available_cpus())
        self.context = context
        self.ids = control_ids(self.tokenizer, self._eos)
        vocabulary = self._config.vocab_size
        self._requests = RequestBuilder(self._text, self.tokenizer, self.ids, vocabulary, engine)
        self._engine_config = engine
        assert engine.threads is not None and engine.max_kv_tokens is not None
        self._backend = CpuBackend(engine.threads)
        self._blocks = -(-engine.max_kv_tokens // BLOCK_SIZE)
        self._runner = Runner(
            self._decoder(), self._backend, self._blocks, engine.kv, min(self.tokenizer.num_ids, vocabulary)
        )
        self._engine = self._new_engine()

    def refresh(self) -> None:
        """Take the model's weights as they are now; nothing computed with the old ones is kept."""
        self._runner.decoder = self._decoder()
        self._engine = self._new_engine()

    def draw(self, asks: Sequence[Ask]) -> list[Drawn]:
        """One continuation for each; a prompt asked several times is computed once."""
        requests = [self._request(ask) for ask in asks]
        first: dict[tuple[int, ...], Request] = {}
        for request in requests:
            leader = first.setdefault(tuple(request.tokens), request)
            request.leader = None if leader is request else leader
        self._engine.submit(*requests)
        while any(request.finish_reason is None for request in requests):
            self._engine.step()
        return [self._drawn(request) for request in requests]

    def _request(self, ask: Ask) -> Request:
        s = self.settings
        params = SamplingParams(
            temperature=s.temperature,
            top_p=s.top_p,
            top_k=s.top_k,
            min_p=0.0,
            presence_penalty=0.0,
            seed=ask.seed,
            max_tokens=ask.limit,
            logprobs=0 if s.logprobs else None,
        )
        return self._requests.raw(ask.ids, params, _nobody)

    def _drawn(self, request: Request) -> Drawn:
        if request.error is not None:
            raise request.error
        logprobs = None
        if self.settings.logprobs:
            logprobs = [float("nan") if each is None else each.logprob for each in request.output.logprobs]
        return Drawn(request.tokens[request.num_prompt :], logprobs)

    def _new_engine(self) -> Engine:
        config = self._engine_config
        pool = BlockPool(self._blocks, BLOCK_SIZE, prefix_cache=config.prefix_cache)
        return Engine(Scheduler(pool, config.max_batch_tokens, config.max_running), self._runner)

    def _decoder(self) -> Decoder:
        tensors = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        if split := [name for name, tensor in tensors.items() if hasattr(tensor, "full_tensor")]:
            raise UsageError(
                f"{split[0]} is spread over several processes, but our engine needs the whole model in one. "
                'Use rollouts="vllm" or "transformers".'
            )
        if self._config.tie_word_embeddings:
            tensors.pop(HEAD, None)
        source = LiveTensors(tensors, self._path)
        return Decoder.load(
            Checkpoint(self._path, self._config, source, self._eos, self._text), self._backend
        )


def _config(model: Any) -> ModelConfig:
    raw = model.config.to_dict()
    raw["architectures"] = [type(model).__name__]
    return ModelConfig.from_hf(raw)


def _eos(model: Any, config: ModelConfig) -> tuple[int, ...]:
    more = getattr(model.generation_config, "eos_token_id", None)
    listed = more if isinstance(more, list) else [more]
    return tuple(dict.fromkeys([*config.eos_ids, *(token for token in listed if isinstance(token, int))]))


def _floats(name: str, tensor: Any) -> FloatArray:
    values: FloatArray = tensor.float().cpu().numpy()
    try:
        return finite(values, name, Path("the model"))
    except ModelError:
        raise ModelError(
            f"{name} of the model holds NaN or an infinity: its training went astray. Lower the rate."
        ) from None


def _nobody(delta: Delta | None) -> None:
    """Nobody reads along."""
