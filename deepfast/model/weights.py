"""A checkpoint: its config, its texts and its tensors by name, whatever files they lie in.

In: a directory in Hugging Face format, or a .gguf file. Out: ModelConfig, TextFiles, vectors, matrices that
are read row by row or packed ones as they lie in the file. Shapes are checked and uses noted: what is left
over can be named.
Does not know: file formats, which tensors an architecture needs, backends.
"""

from __future__ import annotations

from pathlib import Path

from ..config import ModelConfig, WeightFormat
from ..text.files import TextFiles
from ..types import ModelError
from .directory import PackedMatrix, SafetensorsSource, read_json
from .fused import FusedSource
from .gguf_model import open_gguf
from .quantised import QuantisedSource
from .safetensors import ALIGNMENT
from .shapes import FIRST_OUTPUT
from .tensors import FloatArray, Matrix, Source


class Checkpoint:
    """An open model. Raises ModelError when a file is missing or damaged."""

    def __init__(
        self, path: Path, config: ModelConfig, source: Source, eos_ids: tuple[int, ...], text: TextFiles
    ) -> None:
        self.path, self.config, self.source, self.text = path, config, source, text
        self.eos_ids = tuple(i for i in eos_ids if 0 <= i < config.vocab_size)  # some files say -1 for none
        self._names = frozenset(source.names())
        experts = len(config.sparse_layers) * config.num_experts
        room = (
            source.size // ALIGNMENT if config.packed else len(self._names)
        )  # packed experts share a tensor
        if config.num_layers > len(self._names) or experts > room:
            of = f" with {config.num_experts} experts" if experts else ""
            raise ModelError(
                f"{path}: tensors are missing: its configuration says {config.num_layers} layers{of}; "
                f"the files hold {len(self._names)} tensors. Fetch them again."
            )
        self._used: set[str] = set()
        self._bytes_used = 0

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read the small files, map the large ones."""
        if path.suffix.lower() == ".gguf":
            return cls(path, *open_gguf(path))
        hint = "a directory in Hugging Face format has one"
        if found := sorted(path.glob("*.gguf")):
            hint += f"; the directory holds GGUF files, which are opened by name: {found[0]}"
        raw = read_json(path / "config.json", hint)
        config = ModelConfig.from_hf(raw)
        generation = path / "generation_config.json"
        wanted = read_json(generation, "").get("eos_token_id") if generation.exists() else None
        more = wanted if isinstance(wanted, list) else [wanted]
        eos = dict.fromkeys([*config.eos_ids, *(i for i in more if type(i) is int)])
        return cls(path, config, _source(path, config), tuple(eos), TextFiles.from_dir(path))

    @property
    def names(self) -> list[str]:
        """Every tensor."""
        return sorted(self._names)

    def __contains__(self, name: str) -> bool:
        """Is there a tensor of that name?"""
        return name in self._names

    def _expect(self, name: str, shape: tuple[int, ...]) -> None:
        """There is such a tensor, and it is used now."""
        if name not in self._names:
            raise ModelError(
                f"{self.path}: tensor {name} is missing; "
                f"{self.config.architecture} needs it with shape {list(shape)}."
            )
        found = self.source.shape(name)
        if found != shape:
            raise ModelError(
                f"{self.source.where(name)}: tensor {name} has shape {list(found)}; "
                f"its configuration asks for {list(shape)}."
            )
        self.note_used(name)

    def matrix(self, name: str, shape: tuple[int, int]) -> Matrix:
        """A matrix that must have this shape. Nothing is read yet."""
        self._expect(name, shape)
        return self.source.matrix(name)

    def vector(self, name: str, length: int) -> FloatArray:
        """A norm weight or a bias, float32 [length]."""
        self._expect(name, (length,))
        return self.source.vector(name)

    def packed(self, name: str, experts: int, rows: int, columns: int) -> PackedMatrix:
        """A packed weight that must have this shape, already on its way into memory."""
        assert isinstance(self.source, SafetensorsSource)
        self._expect(name, self.source.shape(name) if name in self._names else (experts, rows, columns))
        return self.source.packed(name, experts, rows, columns)

    def note_used(self, name: str) -> None:
        """Count a tensor as used, read or known and not needed."""
        if name not in self._used:
            self._used.add(name)
            self._bytes_used += self.source.nbytes(name)

    def unused(self) -> list[str]:
        """Tensors that nothing asked for."""
        return sorted(self._names - self._used)

    @property
    def stored(self) -> WeightFormat:
        """The format of a matrix in the first layer, and so of most of them."""
        c = self.config
        if c.packed:
            return "q4" if c.weight_bits == 4 else "q8"
        return self.matrix(FIRST_OUTPUT, (c.hidden_size, c.num_heads * c.head_dim)).stored

    def kept_as(self, wanted: WeightFormat | None) -> WeightFormat:
        """The format of most matrices in memory where `wanted` is asked for: q8 leaves 4 bits as they are."""
        if wanted is None or self.config.packed or wanted == "q8" and self.stored == "q4":
            return self.stored
        return wanted

    @property
    def fraction_used(self) -> float:
        """The share of all bytes that was asked for."""
        return self._bytes_used / max(self.source.size, 1)

    def release(self) -> None:
        """Let the system drop the file pages that were read, unless the model goes on reading them."""
        if not self.config.packed:
            self.source.release()


def _source(path: Path, config: ModelConfig) -> Source:
    """The tensors of a directory, as config.json says that they are kept."""
    plain = SafetensorsSource.open(path, coded=bool(config.weight_bits) and not config.packed)
    if config.quantised is None and any(
        name.endswith((".qweight", ".weight_packed")) for name in plain.names()
    ):
        raise ModelError(
            f"{path}: its weights are quantised, but config.json has no quantization_config. "
            "Fetch config.json again, or put the settings of the tool there."
        )
    if config.quantised is not None:
        return QuantisedSource(plain, config)
    fused = not config.weight_bits and FusedSource.needed(plain)
    return FusedSource(plain, config) if fused else plain
