"""Every default and every environment variable has its one home here.

In: the `config.json` of a checkpoint as a dict, numbers of the machine. Out: frozen ModelConfig, EngineConfig
and sampling defaults. Does not know: files, weights, tokens' texts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from .types import ModelError, SamplingParams, UsageError

# Environment variables that we read, and nothing else:
ENV_MODEL = "DEEPFAST_MODEL"  # the model when none is named
ENV_THREADS = "DEEPFAST_THREADS"  # worker threads of the native core
ENV_ISA = "DEEPFAST_ISA"  # force a kernel path: avx512 | avx2 | scalar (read by the native core)
ENV_API_KEYS = "DEEPFAST_API_KEYS"  # keys that clients of the server may use, with commas between them

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
class Yarn:
    """YaRN context extension (arXiv 2309.00071), static as in the open frameworks."""

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None


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
    packed: bool = False  # its matrices lie in the layout that the kernels read (`deepfast quantize`)

    def inverse_frequencies(self) -> list[float]:
        """RoPE angle per position for each pair of dimensions, [head_dim / 2] (YaRN: arXiv 2309.00071)."""
        half = self.head_dim // 2
        plain = [self.rope_theta ** (-2.0 * j / self.head_dim) for j in range(half)]
        if self.yarn is None:
            return plain
        y, d = self.yarn, self.head_dim

        def turning(rotations: float) -> float:
            top = d * math.log(y.original_max_position / (rotations * 2 * math.pi))
            return top / (2 * math.log(self.rope_theta))

        low = max(math.floor(turning(y.beta_fast)), 0)
        high = min(math.ceil(turning(y.beta_slow)), d - 1)
        span = (high - low) or 0.001
        ramp = [min(max((j - low) / span, 0.0), 1.0) for j in range(half)]
        return [f / y.factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]

    @property
    def rope_scale(self) -> float:
        """Multiplies both cos and sin: 1 without YaRN, 0.1 ln(factor) + 1 with it."""
        if self.yarn is None:
            return 1.0
        if self.yarn.attention_factor is not None:
            return self.yarn.attention_factor
        return 0.1 * math.log(self.yarn.factor) + 1.0 if self.yarn.factor > 1 else 1.0

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read an HF `config.json`. Raises ModelError naming the key, its value and what we can run."""
        return _read_hf(raw)


# architecture -> (q/k/v bias, qk-norm, mixture of experts); the decoder is one file for all of them
ARCHITECTURES: dict[str, tuple[bool, bool, bool]] = {
    "Qwen3ForCausalLM": (False, True, False),
    "Qwen3MoeForCausalLM": (False, True, True),
    "Qwen2ForCausalLM": (True, False, False),
    "LlamaForCausalLM": (False, False, False),
}


def _number(raw: Mapping[str, Any], key: str, kind: type[int] | type[float], low: float, high: float) -> Any:
    value = raw.get(key)
    good = isinstance(value, int) if kind is int else isinstance(value, int | float)
    if isinstance(value, bool) or not good or not low <= value <= high:  # type: ignore[operator]
        raise ModelError(f"config.json: {key} is {value!r}; expected a number from {low:g} to {high:g}.")
    return kind(value)  # type: ignore[arg-type]


def _rope(raw: Mapping[str, Any]) -> tuple[float, Yarn | None]:
    """theta and YaRN, from the old keys (rope_theta, rope_scaling) or the new one (rope_parameters)."""
    params = _table(raw, "rope_parameters") or _table(raw, "rope_scaling")
    if params.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError("config.json: partial_rotary_factor is not supported; expected 1 or no such key.")
    theta = _number({"rope_theta": 10000.0, **raw, **params}, "rope_theta", float, 1.0, 1e12)
    kind = params.get("rope_type", params.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "yarn":
        raise ModelError(f"config.json: rope_type {kind!r} is not supported; expected 'default' or 'yarn'.")
    for key, plain in (("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
        if params.get(key, plain) != plain:
            raise ModelError(
                f"config.json: YaRN with {key}={params[key]!r} is not supported; leave the key out."
            )
    defaults = {"original_max_position_embeddings": raw.get("max_position_embeddings")}
    known = {"beta_fast": 32.0, "beta_slow": 1.0, **defaults}
    known |= {key: value for key, value in params.items() if value is not None}
    scale = _number(known, "attention_factor", float, 0.0, 1000.0) if "attention_factor" in known else None
    return theta, Yarn(
        factor=_number(known, "factor", float, 1.0, 1000.0),
        original_max_position=_number(known, "original_max_position_embeddings", int, 1, 2**31 - 1),
        beta_fast=_number(known, "beta_fast", float, 1e-3, 1e6),
        beta_slow=_number(known, "beta_slow", float, 1e-3, 1e6),
        attention_factor=scale,
    )


def _table(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A nested object of config.json, empty when it is absent or null."""
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise ModelError(f"config.json: {key} is {value!r}; expected an object or null.")
    return value


def _own_format(raw: Mapping[str, Any]) -> dict[str, Any]:
    """weight_bits and packed of a checkpoint in our own format, nothing for a plain one; anything else is
    refused by name."""
    quant = _table(raw, "quantization_config")
    if not quant:
        return {}
    method, bits, group = (quant.get(k) for k in ("quant_method", "bits", "group_size"))
    packed = "layout" in quant
    if method != "deepfast" or bits not in ((4, 8) if packed else (8,)) or group != GROUP_SIZE:
        raise ModelError(
            f"config.json: quantization {method!r} with {bits} bits in groups of {group} is not supported; "
            f"expected no quantization_config, or 'deepfast' with 8 bits in groups of {GROUP_SIZE}."
        )
    if packed and quant["layout"] != PACKED_LAYOUT:
        raise ModelError(
            f"config.json: the weights are packed in layout {quant['layout']!r}; this version reads layout "
            f"{PACKED_LAYOUT}. Run deepfast quantize on the original again."
        )
    return {"weight_bits": bits, "packed": packed}


def _read_hf(raw: Mapping[str, Any]) -> ModelConfig:
    names = raw.get("architectures") or []
    name = str(names[0]) if isinstance(names, list) and names else repr(raw.get("model_type"))
    if name not in ARCHITECTURES:
        raise ModelError(f"architecture {name} is unknown; expected one of {', '.join(ARCHITECTURES)}.")
    bias, qk_norm, moe = ARCHITECTURES[name]
    big = 2**31 - 1
    heads = _number(raw, "num_attention_heads", int, 1, 4096)
    hidden = _number(raw, "hidden_size", int, 1, 2**20)
    layers = _number(raw, "num_hidden_layers", int, 1, 4096)
    kv_heads = _number({"num_key_value_heads": heads} | dict(raw), "num_key_value_heads", int, 1, heads)
    usual = 128 if name == "Qwen3ForCausalLM" else hidden // heads
    head_dim = _number({**raw, "head_dim": raw.get("head_dim") or usual}, "head_dim", int, 2, 1024)
    if heads % kv_heads or head_dim % 2:
        raise ModelError(
            f"config.json: {heads} heads over {kv_heads} KV heads of {head_dim}; "
            "expected whole groups and an even head_dim."
        )
    if raw.get("use_sliding_window") or (name == "LlamaForCausalLM" and raw.get("sliding_window")):
        raise ModelError(
            "config.json: sliding-window attention is not supported; expected use_sliding_window false."
        )
    if raw.get("hidden_act", "silu") != "silu":
        raise ModelError(f"config.json: hidden_act {raw['hidden_act']!r} is not supported; expected 'silu'.")
    theta, yarn = _rope(raw)
    known = {"num_experts": raw.get("num_local_experts"), **raw}  # transformers 5 writes the other name
    experts = _number(known, "num_experts", int, 1, 4096) if moe else 0
    step = _number({"decoder_sparse_step": 1, **raw}, "decoder_sparse_step", int, 1, big) if moe else 1
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ModelError(f"config.json: mlp_only_layers is {dense!r}; expected a list of layer numbers.")
    sparse = [i for i in range(layers) if moe and i not in dense and (i + 1) % step == 0]
    attention_bias = bool(raw.get("attention_bias", False))
    eos = raw.get("eos_token_id")
    return ModelConfig(
        architecture=name,
        num_layers=layers,
        hidden_size=hidden,
        intermediate_size=_number(raw, "intermediate_size", int, 1, 2**20),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_number(raw, "vocab_size", int, 1, 2**24),
        max_positions=_number(raw, "max_position_embeddings", int, 1, big),
        rms_norm_eps=_number(raw, "rms_norm_eps", float, 0.0, 1.0),
        rope_theta=theta,
        yarn=yarn,
        qkv_bias=bias or attention_bias,
        output_bias=attention_bias and name != "Qwen2ForCausalLM",
        mlp_bias=bool(raw.get("mlp_bias", False)) and name == "LlamaForCausalLM",
        qk_norm=qk_norm,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        num_experts=experts,
        num_experts_per_token=_number(raw, "num_experts_per_tok", int, 1, experts) if moe else 0,
        moe_intermediate_size=_number(raw, "moe_intermediate_size", int, 1, 2**20) if moe else 0,
        norm_topk_prob=bool(raw.get("norm_topk_prob", False)),
        sparse_layers=frozenset(sparse),
        eos_ids=tuple(i for i in (eos if isinstance(eos, list) else [eos]) if type(i) is int),
        **_own_format(raw),
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine runs a model. `None` is filled from the model and the machine.

    max_context: positions one sequence may have. max_kv_tokens: positions of the whole KV cache.
    max_new_tokens: what one request may generate at most; None leaves that to the context.
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

    def resolve(self, model: ModelConfig, cpus: int) -> EngineConfig:
        """The same configuration, checked and with threads; context and cache are chosen by model/fit.py.

        Raises UsageError when a number makes no sense.
        """
        self._check()
        if self.max_context is not None and self.max_context > model.max_positions:
            raise UsageError(
                f"max_context={self.max_context} is beyond the model's {model.max_positions} positions. "
                "Ask for at most that."
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
