"""The parts of an HF `config.json` that change how a model is computed: RoPE scaling, attention windows,
quantisation.

In: config.json as a dict, spelled as transformers 4 or 5 do. Out: frozen values; or a ModelError that
names the key, its value and what we can run. Does not know: shapes, files, weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

from .types import ModelError

Raw = Mapping[str, Any]
BIG = 2**31 - 1


def number(raw: Raw, key: str, kind: type[int] | type[float], low: float, high: float) -> Any:
    """raw[key] as a number from low to high."""
    value = raw.get(key)
    good = isinstance(value, int) if kind is int else isinstance(value, int | float)
    if isinstance(value, bool) or not good or not low <= value <= high:  # type: ignore[operator]
        shown = f"{value!r:.100}"
        raise ModelError(f"config.json: {key} is {shown}; expected a number from {low:g} to {high:g}.")
    return kind(value)  # type: ignore[arg-type]


def table(raw: Raw, key: str) -> Raw:
    """A nested object, empty when it is absent or null."""
    value = raw.get(key) or {}
    if not isinstance(value, Mapping):
        raise ModelError(f"config.json: {key} is {value!r:.100}; expected an object or null.")
    return value


@dataclass(frozen=True, slots=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071), static as in the open frameworks."""

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None

    @property
    def positions(self) -> int:
        """How far it extends the context."""
        return int(self.original_max_position * self.factor)

    @property
    def scale(self) -> float:
        """Multiplies both cos and sin: 0.1 ln(factor) + 1 unless it is given."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def ramp(self, theta: float, head_dim: int) -> tuple[int, int]:
        """The pairs of dimensions between which frequencies go from kept to divided by the factor."""

        def turning(rotations: float) -> float:
            top = head_dim * math.log(self.original_max_position / (rotations * 2 * math.pi))
            return top / (2 * math.log(theta))

        low = max(math.floor(turning(self.beta_fast)), 0)
        return low, min(math.ceil(turning(self.beta_slow)), head_dim - 1)

    def frequencies(self, plain: list[float], theta: float) -> list[float]:
        """RoPE frequencies after the extension."""
        low, high = self.ramp(theta, 2 * len(plain))
        span = (high - low) or 0.001
        ramp = [min(max((j - low) / span, 0.0), 1.0) for j in range(len(plain))]
        return [f / self.factor * r + f * (1 - r) for f, r in zip(plain, ramp, strict=True)]


@dataclass(frozen=True, slots=True)
class Llama3Rope:
    """The context extension of Llama 3.1: long waves are divided by the factor, short ones kept, between them
    a straight line."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def frequencies(self, plain: list[float]) -> list[float]:
        """RoPE frequencies after the extension."""
        low, high = self.low_freq_factor, self.high_freq_factor
        result = []
        for f in plain:
            turns = self.original_max_position * f / (2 * math.pi)  # full turns within the original context
            kept = min(max((turns - low) / (high - low), 0.0), 1.0)
            result.append((1 - kept) * f / self.factor + kept * f)
        return result


class Rope(NamedTuple):
    """theta, and how it is scaled, if it is."""

    theta: float
    yarn: Yarn | None = None
    llama3: Llama3Rope | None = None


def _rope_table(raw: Raw) -> Raw:
    """The old key goes first where both are there, as in transformers; it may keep one for each kind of
    layer."""
    params = table(raw, "rope_scaling") or table(raw, "rope_parameters")
    return table(params, "full_attention") or params


def read_rope(raw: Raw) -> Rope:
    """From the old keys (rope_theta, rope_scaling) or the new one (rope_parameters)."""
    params = _rope_table(raw)
    if params.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError("config.json: partial_rotary_factor is not supported; expected 1 or no such key.")
    theta = number({"rope_theta": 10000.0, **raw, **params}, "rope_theta", float, 1.0, 1e12)
    kind = params.get("rope_type", params.get("type", "default"))
    if kind in ("default", None):
        return Rope(theta)
    known = {"original_max_position_embeddings": raw.get("max_position_embeddings")}
    known |= {key: value for key, value in params.items() if value is not None}
    if kind == "llama3":
        return Rope(theta, llama3=_llama3(known))
    if kind != "yarn":
        raise ModelError(
            f"config.json: rope_type {kind!r:.100} is not supported; expected 'default', 'yarn' or 'llama3'."
        )
    if theta <= 1.0:
        raise ModelError("config.json: rope_theta is 1; YaRN needs more. Fetch the file again.")
    return Rope(theta, yarn=_yarn(known))


def _yarn(known: Raw) -> Yarn:
    for key, plain in (("mscale", None), ("mscale_all_dim", None), ("truncate", True)):
        if known.get(key, plain) != plain:
            raise ModelError(
                f"config.json: YaRN with {key}={known[key]!r:.100} is not supported; leave the key out."
            )
    known = {"beta_fast": 32.0, "beta_slow": 1.0, **known}
    scale = number(known, "attention_factor", float, 0.0, 1000.0) if "attention_factor" in known else None
    return Yarn(
        factor=number(known, "factor", float, 1.0, 1000.0),
        original_max_position=number(known, "original_max_position_embeddings", int, 1, BIG),
        beta_fast=number(known, "beta_fast", float, 1e-3, 1e6),
        beta_slow=number(known, "beta_slow", float, 1e-3, 1e6),
        attention_factor=scale,
    )


def _llama3(known: Raw) -> Llama3Rope:
    low = number(known, "low_freq_factor", float, 1e-3, 1e6)
    high = number(known, "high_freq_factor", float, 1e-3, 1e6)
    if not low < high:
        raise ModelError(f"config.json: low_freq_factor {low:g} is not below high_freq_factor {high:g}.")
    original = number(known, "original_max_position_embeddings", int, 1, BIG)
    return Llama3Rope(number(known, "factor", float, 1.0, 1000.0), low, high, original)


class Context(NamedTuple):
    """How many positions a model has, and what a person should know about that."""

    positions: int
    notes: tuple[str, ...] = ()


def read_context(raw: Raw, yarn: Yarn | None) -> Context:
    """max_position_embeddings, unless YaRN says otherwise: its factor counts, however the other key was left.
    Dual chunk attention is ordinary attention within its first chunk, and that is where we stop."""
    said: int = number(raw, "max_position_embeddings", int, 1, BIG)
    dual = table(raw, "dual_chunk_attention_config")
    if dual:
        chunk: int = number(dual, "chunk_size", int, 1, BIG)
        native = dual.get("original_max_position_embeddings") or chunk
        positions: int = min(said, chunk, number({"original": native}, "original", int, 1, BIG))
        if positions == said:
            return Context(said)
        note = f"dual chunk attention is not supported: the context is {positions:,} positions of {said:,}"
        return Context(positions, (note,))
    if yarn is None:
        return Context(said)
    warning = yarn_warning(yarn)
    if _rope_table(raw).get("original_max_position_embeddings") is None or yarn.positions == said:
        return Context(said, (warning,))
    product = "factor x original_max_position_embeddings"
    number({product: yarn.positions}, product, int, 1, BIG)
    note = (
        f"max_position_embeddings is {said:,}, but YaRN extends {yarn.original_max_position:,} positions "
        f"{yarn.factor:g} times: the context is {yarn.positions:,}"
    )
    return Context(yarn.positions, (note, warning))


def yarn_warning(yarn: Yarn) -> str:
    """What everybody who has YaRN on should know."""
    return (
        f"YaRN with factor {yarn.factor:g} acts at every length and may hurt short texts; leave it off "
        f"(--yarn 1) for contexts of up to {yarn.original_max_position:,} positions"
    )


def read_window(raw: Raw, architecture: str, layers: int, positions: int) -> int:
    """The sliding window of attention, 0 for none. Refused where it is shorter than the context: we compute
    full attention only."""
    kinds = raw.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        raise ModelError(f"config.json: layer_types is {kinds!r:.100}; expected a list of {layers} names.")
    others = {str(kind) for kind in kinds or ()} - {"full_attention", "sliding_attention"}
    if others:
        raise ModelError(
            f"config.json: layer_types has {min(others)!r:.100}; only 'full_attention' is supported."
        )
    window, first = raw.get("sliding_window"), 0
    if architecture.startswith("Qwen") and kinds is None:
        if not raw.get("use_sliding_window"):
            return 0
        window = raw.get("sliding_window", 4096)  # what transformers takes where the key is missing
        if (
            architecture != "Qwen3MoeForCausalLM"
        ):  # all of its layers have the window, of others the upper ones
            first = raw.get("max_window_layers", 0)
    if (kinds is not None and "sliding_attention" not in kinds) or window is None:
        return 0
    if type(window) is int and window >= positions:
        return window
    if type(first) is int and first >= layers:
        return 0
    raise ModelError(
        f"config.json: sliding-window attention (sliding_window {window!r:.100}) is not supported; "
        f"expected use_sliding_window false, or a window of all {positions} positions."
    )


Method = Literal["awq", "gptq", "fp8", "compressed-tensors"]


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How a checkpoint's matrices are quantised; which of them are is seen from their tensors.

    group_size: inputs that share a scale, 0 for a whole row. symmetric: zeros are the middle of the codes
    where none are stored. less_one: stored zeros are one too small. ordered: groups may be of inputs in any
    order. block: rows and columns that share a scale, None for the whole matrix (fp8).
    """

    method: Method
    bits: int = 8
    group_size: int = 0
    symmetric: bool = False
    less_one: bool = False
    ordered: bool = False
    block: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """For people."""
        if self.method == "fp8":
            return f"FP8 in blocks of {self.block[0]} x {self.block[1]}" if self.block else "FP8"
        groups = f"in groups of {self.group_size}" if self.group_size else "with one scale per row"
        return f"{self.label} with {self.bits} bits {groups}"

    @property
    def label(self) -> str:
        """The method as people write it."""
        return self.method if "-" in self.method else self.method.upper()


def read_quantisation(raw: Raw) -> Quantisation | None:
    """quantization_config of an AWQ, GPTQ or FP8 checkpoint, None where there is none."""
    quant = table(raw, "quantization_config")
    method = quant.get("quant_method")
    if not quant:
        return None
    if method not in get_args(Method):
        raise ModelError(
            f"config.json: quantization_config has quant_method {method!r:.100}, which is not supported; "
            f"expected {', '.join(get_args(Method))} or deepfast. Fetch the original weights instead."
        )
    if method in ("awq", "gptq"):
        return _integer(quant, cast(Method, method))
    return _fp8(quant) if method == "fp8" else _compressed(quant)


def _only(quant: Raw, key: str, known: tuple[Any, ...], usual: Any) -> Any:
    """quant[key], which must be one of these."""
    value = quant.get(key)
    value = usual if value is None else value.lower() if isinstance(value, str) else value
    if not any(value is good or (type(value) is type(good) and value == good) for good in known):
        shown = " or ".join(map(repr, known))
        raise ModelError(
            f"config.json: {quant['quant_method']} with {key} {value!r:.100} is not supported; "
            f"expected {shown}."
        )
    return value


def _integer(quant: Raw, method: Method) -> Quantisation:
    """AWQ and GPTQ."""
    bits: int = _only(quant, "bits", (4,) if method == "awq" else (4, 8), None)
    group = _group(method, quant.get("group_size", 128))
    if method == "awq":
        form = quant.get("version") or quant.get("format")
        _only({**quant, "version": form}, "version", ("gemm",), "gemm")
        symmetric = not _only(quant, "zero_point", (True, False), True)
        return Quantisation(method, bits, group, symmetric)
    form = quant.get("checkpoint_format") or quant.get("format")
    form = _only({**quant, "checkpoint_format": form}, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
    _only(quant, "pack_dtype", ("int32",), "int32")
    dynamic = quant.get("dynamic") or {}
    changed = (
        [key for key in dynamic if not str(key).startswith("-:")] if isinstance(dynamic, Mapping) else [0]
    )
    if changed:
        raise ModelError(
            f"config.json: gptq with other settings for {changed[0]!r:.100} (dynamic) is not supported; "
            "expected one setting for all layers."
        )
    symmetric = _only(quant, "sym", (True, False), True)
    ordered = _only(quant, "desc_act", (True, False), False)
    return Quantisation(method, bits, group, symmetric, less_one=form == "gptq", ordered=ordered)


def _group(method: Method, group: Any) -> int:
    """group_size, 0 for a whole row."""
    if type(group) is not int or (group != -1 and (group < 32 or group % 32 or group > BIG)):
        raise ModelError(
            f"config.json: {method} with group_size {group!r:.100} is not supported; "
            "expected a multiple of 32, or -1."
        )
    return max(group, 0)


def _compressed(quant: Raw) -> Quantisation:
    """compressed-tensors: weights of 4 or 8 bits alone, packed, symmetric (W4A16, W8A16)."""
    method: Method = "compressed-tensors"
    _only(quant, "format", ("pack-quantized",), None)
    groups = list(table(quant, "config_groups").values())
    scheme = groups[0] if len(groups) == 1 and isinstance(groups[0], Mapping) else {}
    weights = table(scheme, "weights")
    others = [scheme.get("input_activations"), scheme.get("output_activations"), quant.get("kv_cache_scheme")]
    sparse = table(quant, "sparsity_config").get("format", "dense")
    if not weights or any(others) or sparse != "dense":
        raise ModelError(
            f"config.json: {method} is supported with one group of dense layers and with weights alone "
            "quantised; this has more. Fetch the original weights instead."
        )
    weights = {**weights, "quant_method": method}
    bits = _only(weights, "num_bits", (4, 8), None)
    _only(weights, "type", ("int",), "int")
    _only(weights, "symmetric", (True,), True)
    rows = _only(weights, "strategy", ("group", "channel"), None) == "channel"
    group = 0 if rows else _group(method, weights.get("group_size"))
    ordered = _only(weights, "actorder", ("group", "weight", "static", "dynamic", False), False)
    return Quantisation(method, bits, group, symmetric=True, ordered=ordered in ("group", "dynamic"))


def _fp8(quant: Raw) -> Quantisation:
    _only(quant, "activation_scheme", ("dynamic",), "dynamic")
    _only(quant, "fmt", ("e4m3",), "e4m3")
    _only(quant, "scale_fmt", ("float",), "float")
    block = quant.get("weight_block_size")
    if block is None:
        return Quantisation("fp8")
    if not isinstance(block, list) or len(block) != 2:
        raise ModelError(f"config.json: weight_block_size is {block!r:.100}; expected two numbers.")
    rows, columns = (number({"weight_block_size": n}, "weight_block_size", int, 1, 2**20) for n in block)
    return Quantisation("fp8", block=(rows, columns))
