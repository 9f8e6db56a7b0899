"""Every default and every environment variable has its one home here.

In: the `config.json` of a checkpoint as a dict, numbers of the machine. Out: frozen ModelConfig, EngineConfig
and sampling defaults. Does not know: files, weights, tokens' texts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from .hf_config import (
    BIG,
    number,
    read_context,
    read_quantisation,
    read_rope,
    read_window,
    table,
    yarn_warning,
)
from .hf_config import Llama3Rope as Llama3Rope
from .hf_config import Quantisation as Quantisation
from .hf_config import Yarn as Yarn
from .types import ModelError, SamplingParams, UsageError

# Environment variables that we read, and nothing else:
ENV_MODEL = "DEEPFAST_MODEL"  # the model when none is named
ENV_THREADS = "DEEPFAST_THREADS"  # worker threads of the native core
ENV_ISA = "DEEPFAST_ISA"  # force a kernel path: avx512 | avx2 | scalar (read by the native core)
ENV_API_KEYS = "DEEPFAST_API_KEYS"  # keys that clients of the server may use, with commas between them
ENV_HUB = "DEEPFAST_HUB"  # where names without a prefix are looked up: hf | modelscope
# The hubs' own, which model/shelf.py reads as their libraries do: HF_ENDPOINT, HF_TOKEN, HF_HOME,
# HF_HUB_CACHE, HF_HUB_OFFLINE; MODELSCOPE_ENDPOINT, MODELSCOPE_DOMAIN, MODELSCOPE_CACHE,
# MODELSCOPE_API_TOKEN. The way there, for httpx2: HTTPS_PROXY, HTTP_PROXY, NO_PROXY, SSL_CERT_FILE.

WeightFormat = Literal["f32", "bf16", "q8", "q4"]
KVFormat = Literal["f32", "f16", "q8"]

BUNDLED_NAME = "deepfast-nano"  # the model that ships with the package
ANSWER_RESERVE = 256  # tokens kept free for the answer, at most a quarter of what the request may generate
MAX_WAITS = 6  # times that one thought is extended by "Wait" (s1, arXiv 2501.19393: it flattens there)
MAX_DRAFT = 8  # tokens that speculation proposes at once
BLOCK_SIZE = 16  # KV positions per block: the lanes of one vector register
GROUP_SIZE = 32  # weights that share a scale in q4 and q8
PACKED_LAYOUT = 1  # of the picture at `Packed` in csrc/ops.h; raise it whenever that picture changes


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """Qwen's recommendation for one mode (the model cards of Qwen3)."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float = 0.0
    presence_penalty: float = 0.0


THINK_DEFAULTS = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=20)
NO_THINK_DEFAULTS = SamplingDefaults(temperature=0.7, top_p=0.8, top_k=20)


def resolve_sampling(params: SamplingParams, *, thinking: bool) -> SamplingParams:
    """Fill the open fields of `params` with the defaults of the mode in force."""
    defaults = THINK_DEFAULTS if thinking else NO_THINK_DEFAULTS
    names = ("temperature", "top_p", "top_k", "min_p", "presence_penalty")
    return replace(params, **{n: getattr(defaults, n) for n in names if getattr(params, n) is None})


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shapes and constants of one decoder. Names follow HF `config.json`."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    yarn: Yarn | None = None
    llama3: Llama3Rope | None = None
    rope_factors: tuple[float, ...] = ()  # [head_dim / 2] that divide the angles (Llama 3.1); empty: all 1
    window: int = 0  # a sliding window that is as long as the context, or none
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    num_experts: int = 0
    num_experts_per_token: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    sparse_layers: frozenset[int] = frozenset()
    eos_ids: tuple[int, ...] = ()
    weight_bits: int = 0  # 8 or 4 when the checkpoint itself is quantised in our format, 0 otherwise
    quantised: Quantisation | None = None  # in another format, matrix by matrix
    notes: tuple[str, ...] = ()  # what a person should know about this model
    packed: bool = False  # its matrices lie in the layout that the kernels read (`deepfast quantize`)

    def inverse_frequencies(self) -> list[float]:
        """RoPE angle per position for each pair of dimensions, [head_dim / 2]."""
        plain = [self.rope_theta ** (-2.0 * j / self.head_dim) for j in range(self.head_dim // 2)]
        if self.rope_factors:
            plain = [f / factor for f, factor in zip(plain, self.rope_factors, strict=True)]
        if self.llama3 is not None:
            return self.llama3.frequencies(plain)
        return plain if self.yarn is None else self.yarn.frequencies(plain, self.rope_theta)

    @property
    def rope_scale(self) -> float:
        """Multiplies both cos and sin."""
        return 1.0 if self.yarn is None else self.yarn.scale

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read an HF `config.json`. Raises ModelError naming the key, its value and what we can run."""
        return _read_hf(raw)


YARN_LIMIT = 64.0  # the largest factor that --yarn takes; Qwen validated 4
TRAINED = {40960: 32768}  # max_position_embeddings of the first Qwen3 models -> what they were trained on


def native_positions(model: ModelConfig) -> int:
    """The positions that a model was trained on, which YaRN extends."""
    if model.yarn is not None:
        return model.yarn.original_max_position
    return TRAINED.get(model.max_positions, model.max_positions)


def with_yarn(model: ModelConfig, factor: float | None) -> ModelConfig:
    """The same model with its context extended `factor` times; None leaves it as its files say, 1 takes the
    extension that they configure away. Raises UsageError for a factor that makes no sense."""
    if factor is None or (model.yarn is not None and model.yarn.factor == factor):
        return model
    native = native_positions(model)
    if not 1 <= factor <= YARN_LIMIT:
        raise UsageError(f"yarn={factor:g} is no factor. Give one from 1 (off) to {YARN_LIMIT:g}.")
    if factor == 1:
        return model if model.yarn is None else replace(model, yarn=None, max_positions=native, notes=())
    if model.llama3 is not None or model.rope_factors:
        raise UsageError("yarn cannot extend a model with Llama 3's own extension. Leave it out.")
    yarn = replace(model.yarn or Yarn(factor, native), factor=factor, attention_factor=None)
    least = native if model.yarn is not None else model.max_positions
    if yarn.positions <= least or model.window and yarn.positions > model.window:
        why = f"fewer than its own {least}" if yarn.positions <= least else f"its window is {model.window}"
        raise UsageError(
            f"yarn={factor:g} gives this model {yarn.positions} positions, {why}. Leave it out, or give "
            f"{enough_yarn(model, 2 * least):g}."
        )
    return replace(model, yarn=yarn, max_positions=yarn.positions, notes=(yarn_warning(yarn),))


def enough_yarn(model: ModelConfig, positions: int) -> float:
    """The factor, a multiple of a half, that gives so many positions."""
    return -(-2 * positions // native_positions(model)) / 2


# architecture -> (q/k/v bias, qk-norm, mixture of experts); the decoder is one file for all of them
ARCHITECTURES: dict[str, tuple[bool, bool, bool]] = {
    "Qwen3ForCausalLM": (False, True, False),
    "Qwen3MoeForCausalLM": (False, True, True),
    "Qwen2ForCausalLM": (True, False, False),
    "LlamaForCausalLM": (False, False, False),
}


def _quantised(raw: Mapping[str, Any]) -> dict[str, Any]:
    """weight_bits and packed of a checkpoint in our own format, quantised of others, nothing for a plain
    one; anything else is refused by name."""
    quant = table(raw, "quantization_config")
    if quant.get("quant_method") != "deepfast":
        return {"quantised": read_quantisation(raw)}
    bits, group, packed = quant.get("bits"), quant.get("group_size"), "layout" in quant
    if bits not in ((4, 8) if packed else (8,)) or group != GROUP_SIZE:
        raise ModelError(
            f"config.json: quantization 'deepfast' with {bits!r:.100} bits in groups of {group!r:.100} is "
            f"not supported; expected 8 bits in groups of {GROUP_SIZE}. Quantise the original again."
        )
    if packed and quant["layout"] != PACKED_LAYOUT:
        raise ModelError(
            f"config.json: the weights are packed in layout {quant['layout']!r:.100}; this version reads "
            f"layout {PACKED_LAYOUT}. Run deepfast quantize on the original again."
        )
    return {"weight_bits": bits, "packed": packed}


def _sparse_layers(raw: Mapping[str, Any], layers: int) -> frozenset[int]:
    """The layers that have experts."""
    step = number({"decoder_sparse_step": 1, **raw}, "decoder_sparse_step", int, 1, BIG)
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ModelError(f"config.json: mlp_only_layers is {dense!r:.100}; expected a list of layer numbers.")
    without = {i for i in dense if isinstance(i, int)}
    return frozenset(i for i in range(layers) if i not in without and (i + 1) % step == 0)


def _read_hf(raw: Mapping[str, Any]) -> ModelConfig:
    names = raw.get("architectures") or []
    name = str(names[0]) if isinstance(names, list) and names else str(raw.get("model_type"))
    if name not in ARCHITECTURES:
        raise ModelError(
            f"architecture {name!r:.100} is unknown; expected one of {', '.join(ARCHITECTURES)}."
        )
    bias, qk_norm, moe = ARCHITECTURES[name]
    heads = number(raw, "num_attention_heads", int, 1, 4096)
    hidden = number(raw, "hidden_size", int, 1, 2**20)
    layers = number(raw, "num_hidden_layers", int, 1, 4096)
    kv_heads = number({"num_key_value_heads": heads} | dict(raw), "num_key_value_heads", int, 1, heads)
    usual = 128 if name == "Qwen3ForCausalLM" else hidden // heads
    head_dim = number({**raw, "head_dim": raw.get("head_dim") or usual}, "head_dim", int, 2, 1024)
    if heads % kv_heads or head_dim % 2:
        raise ModelError(
            f"config.json: {heads} heads over {kv_heads} KV heads of {head_dim}; "
            "expected whole groups and an even head_dim."
        )
    if (activation := raw.get("hidden_act", "silu")) != "silu":
        raise ModelError(f"config.json: hidden_act {activation!r:.50} is not supported: it must be 'silu'.")
    rope = read_rope(raw)
    context = read_context(raw, rope.yarn)
    known = {"num_experts": raw.get("num_local_experts"), **raw}  # transformers 5 writes the other name
    experts = number(known, "num_experts", int, 1, 4096) if moe else 0
    attention_bias = bool(raw.get("attention_bias", False))
    eos = raw.get("eos_token_id")
    return ModelConfig(
        architecture=name,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=number(raw, "intermediate_size", int, 1, 2**20),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=number(raw, "vocab_size", int, 1, 2**24),
        max_positions=context.positions,
        rms_norm_eps=number(raw, "rms_norm_eps", float, 0.0, 1.0),
        rope_theta=rope.theta,
        yarn=rope.yarn,
        llama3=rope.llama3,
        window=read_window(raw, name, layers, context.positions),
        qkv_bias=bias or attention_bias,
        output_bias=attention_bias and name != "Qwen2ForCausalLM",
        mlp_bias=bool(raw.get("mlp_bias", False)) and name == "LlamaForCausalLM",
        qk_norm=qk_norm,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        num_experts=experts,
        num_experts_per_token=number(raw, "num_experts_per_tok", int, 1, experts) if moe else 0,
        moe_intermediate_size=number(raw, "moe_intermediate_size", int, 1, 2**20) if moe else 0,
        norm_topk_prob=bool(raw.get("norm_topk_prob", False)),
        sparse_layers=_sparse_layers(raw, layers) if moe else frozenset(),
        eos_ids=tuple(i for i in (eos if isinstance(eos, list) else [eos]) if type(i) is int),
        notes=context.notes,
        **_quantised(raw),
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine runs a model. `None` is filled from the model and the machine.

    max_context: positions one sequence may have. max_kv_tokens: positions of the whole KV cache.
    max_new_tokens: what one request may generate at most; None leaves that to the context. yarn: how many
    times YaRN extends the context; None leaves that to the model's files, 1 turns it off.
    """

    backend: Literal["cpu", "reference"] = "cpu"
    kv: KVFormat = "f16"
    max_context: int | None = None
    max_kv_tokens: int | None = None
    max_new_tokens: int | None = None
    max_batch_tokens: int = 512
    max_running: int = 16
    prefix_cache: bool = True
    speculation: bool = True
    threads: int | None = None
    yarn: float | None = None

    def resolve(self, model: ModelConfig, cpus: int) -> EngineConfig:
        """The same configuration, checked and with threads; context and cache are chosen by model/fit.py.

        Raises UsageError when a number makes no sense.
        """
        self._check()
        model = with_yarn(model, self.yarn)
        context = self.max_context or model.max_positions
        if context > model.max_positions:
            factor = enough_yarn(model, context)
            more = (
                ""
                if factor > YARN_LIMIT or model.llama3 or model.rope_factors or model.window
                else (f", or extend them with YaRN, which may hurt short texts: --yarn {factor:g}")
            )
            raise UsageError(
                f"max_context={context} is beyond the model's {model.max_positions} positions. "
                f"Ask for at most that{more}."
            )
        wanted = os.environ.get(ENV_THREADS) or str(cpus)
        if self.threads is None and not wanted.isdecimal():
            raise UsageError(f"{ENV_THREADS}={wanted!r} is no number. Set a positive one, or unset it.")
        threads = int(wanted) if self.threads is None else self.threads
        if threads < 1:
            raise UsageError(f"threads={threads} is below 1. Give a positive number, or leave it out.")
        return replace(self, threads=threads)

    def _check(self) -> None:
        """Refuse what makes no sense on any machine, by name."""
        for name in ("max_context", "max_kv_tokens", "max_new_tokens", "max_batch_tokens", "max_running"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name}={value} is below 1. Give a positive number.")
        for name, known in (("backend", ("cpu", "reference")), ("kv", get_args(KVFormat))):
            if getattr(self, name) not in known:
                raise UsageError(f"{name}={getattr(self, name)!r} is unknown. Use {' or '.join(known)}.")


def kv_head_bytes(head_dim: int, kv: KVFormat) -> int:
    """Bytes of the key and the value of one KV head at one position of one layer."""
    if kv == "q8":
        return 2 * (-(-head_dim // 4) * 4 + 2)  # codes, padded to words of four, and a float16 scale
    return 2 * head_dim * (2 if kv == "f16" else 4)


def kv_bytes_per_token(model: ModelConfig, kv: KVFormat) -> int:
    """Bytes of keys and values that one position takes over all layers."""
    return model.num_layers * model.num_kv_heads * kv_head_bytes(model.head_dim, kv)


LogFormat = Literal["auto", "json", "text"]


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How the server is reached and what it lets clients do.

    api_keys: empty lets everybody in. hosts: names that a request's Host header may hold (empty: any), so
    that no web page reaches a server without keys through a name that it made point here. cors: origins whose
    pages may use the server ("*": all). max_body: bytes. max_tokens: what one request may generate at most.
    max_queue: answers that may wait beside those that run. body_seconds: how long a body may take to arrive.
    stall_seconds: how long a client may accept nothing of its answer. shutdown_seconds: what running requests
    get to finish. Raises UsageError when a number makes no sense.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    max_body: int = 10 * 2**20
    max_tokens: int | None = None
    max_queue: int = 64
    body_seconds: float = 60.0
    stall_seconds: float = 120.0
    shutdown_seconds: float = 20.0
    log_prompts: bool = False
    log_format: LogFormat = "auto"

    def __post_init__(self) -> None:
        """Refuse numbers out of range, by name."""
        lowest = {"max_body": 1024, "max_tokens": 1, "max_queue": 0, "shutdown_seconds": 0}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise UsageError(f"{name}={value} is below {low}. Give at least that.")
        if not all(key and key.isascii() and key.isprintable() and " " not in key for key in self.api_keys):
            raise UsageError("an API key is empty, or not printable ASCII without spaces. Choose another.")
