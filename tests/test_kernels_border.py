"""The native sampler token for token, what the border refuses, the choice of instruction set, and threads.

Needs numpy alone: this file also runs under the sanitizers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from kernel_support import ISAS, backend_of, in_numpy, numbers

from deepfast import _C
from deepfast.backend.base import SampleArgs
from deepfast.backend.cpu import CpuBackend, aligned_empty
from deepfast.backend.machine import available_cpus
from deepfast.backend.probe import int8_peak, read_bandwidth
from deepfast.backend.quant import ArrayMatrix
from deepfast.backend.reference import ReferenceBackend, sample_row
from deepfast.config import ENV_ISA
from deepfast.types import EngineError, UsageError


def sample_args(**changes: Any) -> SampleArgs:
    defaults: dict[str, Any] = {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "uniform": 0.5,
    }  # fmt: skip
    return SampleArgs(**(defaults | changes))


def mask_of(allowed: Any, words: int | None = None) -> bytes:
    """The mask of a list of booleans, padded with zeros to so many words of 32."""
    bits = np.packbits(np.asarray(allowed, bool), bitorder="little").tobytes()
    return bits.ljust(4 * (words or -(-len(allowed) // 32)), b"\0")


def random_args(rng: np.random.Generator, vocab: int) -> SampleArgs:
    ids = [int(i) for i in rng.integers(0, vocab + 5, 30)]
    return sample_args(
        temperature=float(rng.choice([0.0, 0.3, 0.6, 1.0, 2.0])),
        top_k=int(rng.choice([0, 1, 20, 100, 10**6])),
        top_p=float(rng.choice([0.0, 0.5, 0.95, 1.0])),
        min_p=float(rng.choice([0.0, 0.02, 0.3, 1.0])),
        uniform=float(rng.random()),
        presence_penalty=float(rng.choice([0.0, 1.5, -0.5])),
        frequency_penalty=float(rng.choice([0.0, 0.3])),
        repetition_penalty=float(rng.choice([1.0, 1.1, 0.8])),
        logit_bias={i: float(rng.normal() * 5) for i in ids[:3]} if rng.random() < 0.5 else {},
        banned_ids=ids[3:6] if rng.random() < 0.5 else [],
        prompt_ids=ids[6:15],
        output_ids=ids[10:],
        mask=mask_of(rng.random(vocab) < rng.choice([0.3, 0.9])) if rng.random() < 0.4 else None,
    )


@pytest.fixture(scope="module", params=ISAS)
def cpu(request: pytest.FixtureRequest) -> CpuBackend:
    return backend_of(request.param)


class TestSample:
    @pytest.mark.parametrize("vocab", [12, 300, 20000])
    def test_token_for_token_as_reference(self, cpu: CpuBackend, vocab: int) -> None:
        rng = np.random.default_rng(vocab)
        args = [random_args(rng, vocab) for _ in range(40 if vocab > 1000 else 150)]
        logits = (rng.standard_normal((len(args), vocab)) * rng.choice([0.2, 3, 10], (len(args), 1))).astype(
            np.float32
        )
        logits[::5] = np.round(logits[::5])  # many ties
        logits[1::7, ::2] = -np.inf
        valid = vocab - 1
        wanted = [sample_row(row[:valid], a) for row, a in zip(logits, args, strict=True)]
        assert cpu.sample(logits, args, valid) == wanted

    def test_order_and_ends_of_the_distribution(self, cpu: CpuBackend) -> None:
        logits = np.log(np.array([[0.2, 0.5, 0.2, 0.1, 0.0]], np.float32) + np.float32(1e-38))
        logits[0, 4] = -np.inf
        for uniform, token in ((0.0, 1), (0.49, 1), (0.51, 0), (0.71, 2), (0.95, 3), (1 - 1e-16, 3)):
            assert cpu.sample(logits, [sample_args(uniform=uniform)], 5) == [token]

    def test_padding_is_never_drawn(self, cpu: CpuBackend) -> None:
        logits = np.zeros((50, 40), np.float32)
        logits[:, 30:] = 50.0
        args = [sample_args(uniform=i / 50) for i in range(49)] + [sample_args(temperature=0.0)]
        assert max(cpu.sample(logits, args, 30)) < 30

    @pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
    def test_a_damaged_row_is_an_error(self, cpu: CpuBackend, value: float) -> None:
        logits = numbers(2, 100)
        logits[1, 50] = value
        with pytest.raises(EngineError, match="NaN or infinity"):
            cpu.sample(logits, [sample_args(), sample_args()], 100)
        with pytest.raises(EngineError, match="no token is left"):
            cpu.sample(logits[:1], [sample_args(banned_ids=range(100))], 100)


class TestMask:
    @pytest.mark.parametrize("valid", [1, 7, 8, 31, 32, 33, 64, 1000])
    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_the_one_token_that_is_left_is_drawn(
        self, cpu: CpuBackend, valid: int, temperature: float
    ) -> None:
        logits = numbers(valid, valid + 40)
        args = [sample_args(temperature=temperature, mask=mask_of(row)) for row in np.eye(valid)]
        for backend in (cpu, ReferenceBackend()):
            assert backend.sample(logits, args, valid) == list(range(valid))

    def test_a_mask_of_ones_and_words_beyond_change_nothing(self, cpu: CpuBackend) -> None:
        logits, spots = numbers(50, 300), [i / 50 for i in range(50)]
        plain = cpu.sample(logits, [sample_args(uniform=u) for u in spots], 290)
        ones = mask_of(np.ones(400), words=20)
        assert cpu.sample(logits, [sample_args(uniform=u, mask=ones) for u in spots], 290) == plain

    def test_bias_and_penalties_cannot_undo_it(self, cpu: CpuBackend) -> None:
        free = np.ones(64, bool)
        free[5] = False
        args = sample_args(
            temperature=0.0, mask=mask_of(free), logit_bias={5: 1e4}, output_ids=[5, 5], presence_penalty=-2.0
        )
        logits = np.zeros((1, 64), np.float32)
        for backend in (cpu, ReferenceBackend()):
            assert backend.sample(logits, [args], 64) == [0]

    def test_nothing_left_and_a_short_mask_are_errors(self, cpu: CpuBackend) -> None:
        logits, only_five = numbers(1, 40), mask_of(np.arange(40) == 5)
        for backend in (cpu, ReferenceBackend()):
            with pytest.raises(EngineError, match="no token is left"):
                backend.sample(logits, [sample_args(mask=bytes(8))], 40)
            with pytest.raises(EngineError, match="no token is left"):
                backend.sample(logits, [sample_args(mask=only_five, banned_ids=[5])], 40)
            with pytest.raises(ValueError, match="mask"):
                backend.sample(logits, [sample_args(mask=b"\xff" * 7)], 40)
            with pytest.raises(ValueError, match="mask"):
                backend.sample(logits, [sample_args(mask=b"")], 40)


class TestLogProbs:
    @pytest.mark.parametrize("vocab", [1, 2, 30, 5000])
    @pytest.mark.parametrize("top", [0, 1, 5, 20])
    def test_matches_reference(self, cpu: CpuBackend, vocab: int, top: int) -> None:
        logits = np.concatenate([numbers(4, vocab, scale=3), np.round(numbers(4, vocab, seed=1))])  # ties too
        logits[::3, 1::2] = -np.inf
        tokens = [int(row.argmax()) for row in logits]
        wanted = ReferenceBackend().log_probs(logits, tokens, top, vocab)
        for got, truth in zip(cpu.log_probs(logits, tokens, top, vocab), wanted, strict=True):
            assert got[0] == pytest.approx(truth[0], abs=1e-6)
            assert [i for i, _ in got[1]] == [i for i, _ in truth[1]]
            assert [p for _, p in got[1]] == pytest.approx([p for _, p in truth[1]], abs=1e-6)

    def test_they_are_of_the_raw_logits_below_num_valid(self, cpu: CpuBackend) -> None:
        shares = np.array([0.5, 0.125, 0.25, 0.125], np.float32)
        logits = np.concatenate([np.log(shares) + 7, [99.0]]).astype(np.float32)[None]
        backends: list[Any] = [cpu, ReferenceBackend()]
        for backend in backends:
            ((chosen, top),) = backend.log_probs(logits, [3], 9, 4)
            assert chosen == pytest.approx(np.log(0.125), abs=1e-6)
            assert [i for i, _ in top] == [0, 2, 1, 3]
            assert np.exp([p for _, p in top]).sum() == pytest.approx(1.0, abs=1e-6)
            assert backend.log_probs(logits[:0], [], 3, 4) == []


def bad_arrays(cpu: CpuBackend) -> dict[str, Any]:
    """Calls with arrays or sizes that must be refused at the border, by what is wrong with them."""
    core, x = cpu._core, numbers(2, 32)
    w = cpu.pack([ArrayMatrix(numbers(16, 32))], "q8")
    wide, square = (cpu.pack([ArrayMatrix(numbers(m, 32))], "q8") for m in (64, 32))
    y, none, i32 = np.empty((2, 16), np.float32), cast(Any, None), np.int32
    return {
        "float64 input": lambda: core.linear(x.astype(np.float64), w.native, none),
        "one dimension": lambda: core.linear(x[0], w.native, none),
        "four dimensions": lambda: core.linear(x[None, None], w.native, none),
        "not contiguous": lambda: core.linear(numbers(2, 64)[:, ::2], w.native, none),
        "too narrow": lambda: core.linear(numbers(2, 31), w.native, none),
        "bias too short": lambda: core.linear(x, w.native, numbers(15)),
        "no input": lambda: core.linear(none, w.native, none),
        "row beyond": lambda: cpu.take(x, [2]),
        "row below zero": lambda: cpu.take(x, [-1]),
        "other rows to add": lambda: cpu.add_rms_norm(x, x[:1], numbers(32), 1e-6),
        "narrower rows to add": lambda: cpu.add_rms_norm(x, numbers(2, 31), numbers(32), 1e-6),
        "no weight": lambda: core.linear(x, none, none),
        "id below zero": lambda: cpu.embed(np.array([-1], i32), w),
        "id beyond the table": lambda: cpu.embed(np.array([16], i32), w),
        "norm too short": lambda: cpu.rms_norm(x, numbers(31), 1e-6),
        "odd gate_up": lambda: core.mlp(x, w.native, none, w.native, none),
        "mlp bias too short": lambda: cpu.mlp(x, wide, numbers(63), square, none),
        "mlp of narrow rows": lambda: cpu.mlp(numbers(2, 31), wide, none, square, none),
        "buffer too small": lambda: _C.Matrix(aligned_empty(64), "q4", 1, 16, 32),
        "buffer not aligned": lambda: _C.Matrix(aligned_empty(577)[1:], "q8", 1, 16, 32),
        "unknown format": lambda: _C.packed_bytes("q3", 1, 16, 32),
        "no rows": lambda: _C.packed_bytes("q4", 1, 0, 32),
        "part of a panel": lambda: core.pack(w.native, w.buffer, 0, 8, numbers(8, 32)),
        "too many rows": lambda: core.pack(w.native, w.buffer, 0, 0, numbers(32, 32)),
        "no such expert": lambda: core.pack(w.native, w.buffer, 1, 0, numbers(16, 32)),
        "another buffer": lambda: core.pack(w.native, aligned_empty(w.buffer.size), 0, 0, numbers(16, 32)),
        "odd head_dim": lambda: cpu.new_cache(1, 1, 1, 15, "f16"),
        "unknown KV format": lambda: _C.KVCache(1, 1, 1, 16, "q4"),
        "no blocks": lambda: cpu.new_cache(1, 0, 1, 16, "f16"),
        "top_k beyond experts": lambda: cpu.moe(x, numbers(2, 1), w, w, 2, True),
        "num_valid beyond V": lambda: cpu.sample(y, [sample_args()] * 2, 17),
        "arguments missing": lambda: cpu.sample(y, [sample_args()], 16),
        "negative temperature": lambda: cpu.sample(y[:1], [sample_args(temperature=-1.0)], 16),
        "bias not a number": lambda: cpu.sample(y[:1], [sample_args(logit_bias={1: np.nan})], 16),
        "top_p not a number": lambda: cpu.sample(y[:1], [sample_args(top_p=np.nan)], 16),
        "mask too short": lambda: cpu.sample(y[:1], [sample_args(mask=b"\0\0\0")], 16),
        "mask of text": lambda: cpu.sample(y[:1], [sample_args(mask="1" * 16)], 16),
        "no repetition penalty": lambda: cpu.sample(y[:1], [sample_args(repetition_penalty=0.0)], 16),
        "no threads": lambda: _C.Core(0),
        "unknown isa": lambda: _C.Core(1, "mmx"),
    }


def bad_codes(cpu: CpuBackend) -> dict[str, Any]:
    """Quantised rows that must be refused at the border."""
    buffer = aligned_empty(_C.packed_bytes("q4_k", 1, 16, 72, 2))
    w, pack = _C.Matrix(buffer, "q4_k", 1, 16, 72, 2), cpu._core.pack_codes
    codes, halves, bytes_ = (
        np.zeros((16, 72), np.int8),
        np.zeros((16, 2), np.uint16),
        np.zeros((16, 3), np.int8),
    )
    plain = cpu.pack([ArrayMatrix(numbers(16, 72))], "q4")
    low, high = codes.copy(), codes.copy()
    low[15, 71], high[0, 0] = -1, 16
    pack(w, buffer, 0, 0, codes, halves, halves, bytes_, bytes_)
    return {
        "code below zero": lambda: pack(w, buffer, 0, 0, low, halves, halves, bytes_, bytes_),
        "code of five bits": lambda: pack(w, buffer, 0, 0, high, halves, halves, bytes_, bytes_),
        "codes too narrow": lambda: pack(
            w, buffer, 0, 0, codes[:, :64].copy(), halves, halves, bytes_, bytes_
        ),
        "a scale per group": lambda: pack(
            w, buffer, 0, 0, codes, halves[:, [0, 1, 1]], halves, bytes_, bytes_
        ),
        "scales of other rows": lambda: pack(w, buffer, 0, 0, codes, halves[:15], halves, bytes_, bytes_),
        "no minimums": lambda: pack(w, buffer, 0, 0, codes, halves, None, bytes_, bytes_),
        "minimums of other rows": lambda: pack(w, buffer, 0, 0, codes, halves, halves[:15], bytes_, bytes_),
        "no steps": lambda: pack(w, buffer, 0, 0, codes, halves, halves, None, bytes_),
        "no lows": lambda: pack(w, buffer, 0, 0, codes, halves, halves, bytes_),
        "steps too narrow": lambda: pack(
            w, buffer, 0, 0, codes, halves, halves, np.zeros((16, 2), np.int8), bytes_
        ),
        "lows of halves": lambda: pack(
            w, buffer, 0, 0, codes, halves, halves, bytes_, np.zeros((16, 5), np.int8)
        ),
        "steps of int16": lambda: pack(
            w, buffer, 0, 0, codes, halves, halves, bytes_.astype(np.int16), bytes_
        ),
        "steps for one level": lambda: pack(
            plain.native, plain.buffer, 0, 0, codes, np.zeros((16, 3), np.uint16), None, bytes_
        ),
        "codes for floats": lambda: pack(
            cpu.pack([ArrayMatrix(numbers(16, 72))], "bf16").native, buffer, 0, 0, codes, halves
        ),
        "floats for two levels": lambda: cpu._core.pack(w, buffer, 0, 0, numbers(16, 72)),
        "span of one level": lambda: _C.packed_bytes("q4", 1, 16, 72, 2),
        "span of nothing": lambda: _C.packed_bytes("q4_k", 1, 16, 72, 0),
        "negative span": lambda: _C.packed_bytes("q4_k", 1, 16, 72, -8),
        "span beyond all": lambda: _C.packed_bytes("q4_k", 1, 16, 72, 2**31),
        "buffer of another span": lambda: _C.Matrix(buffer, "q4_k", 1, 16, 72, 1),
        "more than there is": lambda: _C.packed_bytes("q8", 2**29, 2**29, 2**29),
    }


def make_batch(positions: list[int], starts: list[int], lens: list[int], tables: list[list[int]]) -> _C.Batch:
    """The native batch of plain lists."""
    p, s, n = (np.array(a, np.int32) for a in (positions, starts, lens))
    return _C.Batch(p, s, n, np.array(tables, np.int32))


def bad_batches(cpu: CpuBackend) -> dict[str, Any]:
    """Batches, blocks, positions and heads that must be refused at the border."""
    core, none = cpu._core, None
    cache = cpu.new_cache(1, 2, 1, 16, "f16")
    rope = cpu.rope_table([1.0] * 8, 1.0, 16)
    one, far = make_batch([0], [0, 1], [1], [[0]]), make_batch([16], [0, 1], [17], [[0, 1]])
    lost, thin = make_batch([0], [0, 1], [1], [[2]]), numbers(16, 2, 4)
    q, qkv = numbers(1, 16), numbers(1, 48)
    return {
        "starts beyond rows": lambda: make_batch([0], [0, 9], [1], [[0]]),
        "starts not rising": lambda: make_batch([0, 0, 1], [0, 5, 3], [1, 2], [[0], [1]]),
        "position off": lambda: make_batch([3], [0, 1], [1], [[0]]),
        "table too narrow": lambda: make_batch([16], [0, 1], [17], [[0]]),
        "negative block": lambda: make_batch([0], [0, 1], [1], [[-1]]),
        "empty batch": lambda: make_batch([], [0], [], []),
        "touched block beyond the cache": lambda: cache.touch(0, [1, 2]),
        "touched layer beyond the cache": lambda: cache.touch(1, [0]),
        "block beyond the cache": lambda: core.attention(q, cache, 0, lost),
        "no such layer": lambda: core.attention(q, cache, 1, one),
        "heads in part": lambda: core.attention(numbers(1, 17), cache, 0, one),
        "rows not of the batch": lambda: core.attention(numbers(2, 16), cache, 0, one),
        "position beyond rope": lambda: core.store_kv(qkv, none, none, rope, 1e-6, cache, 0, far),
        "rope too narrow": lambda: core.store_kv(qkv, none, none, thin, 1e-6, cache, 0, one),
        "rope of two dimensions": lambda: core.store_kv(
            qkv, none, none, numbers(16, 16), 1e-6, cache, 0, one
        ),
        "no queries": lambda: core.store_kv(numbers(1, 32), none, none, rope, 1e-6, cache, 0, one),
        "one norm of two": lambda: core.store_kv(qkv, numbers(16), none, rope, 1e-6, cache, 0, one),
    }


class TestBorder:
    def test_bad_arguments_raise(self, cpu: CpuBackend) -> None:
        for name, call in (bad_arrays(cpu) | bad_codes(cpu) | bad_batches(cpu)).items():
            with pytest.raises((TypeError, ValueError)):
                call()
                pytest.fail(f"{name} was accepted")

    def test_a_cache_beyond_memory_is_a_usage_error(self, cpu: CpuBackend) -> None:
        with pytest.raises(UsageError, match="max_kv_tokens"):
            cpu.new_cache(1000, 10**8, 64, 512, "f32")

    def test_an_unknown_isa_names_those_that_run(self) -> None:
        with pytest.raises(UsageError, match="scalar"):
            CpuBackend(threads=1, isa="mmx")

    @pytest.mark.parametrize("isa", _C.supported_isas())
    def test_the_environment_forces_an_isa(self, isa: str) -> None:
        code = "from deepfast.backend.cpu import CpuBackend; print(CpuBackend(1).isa)"
        environment = os.environ | {ENV_ISA: isa}
        run = subprocess.run(
            [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True
        )
        assert run.stdout.strip() == isa, run.stderr


class TestThreads:
    def test_results_do_not_depend_on_the_number_of_threads(self) -> None:
        w, x = ArrayMatrix(numbers(500, 256)), numbers(40, 256, seed=1)
        backends = (CpuBackend(1), CpuBackend(2), CpuBackend(5))
        results = [in_numpy(b.linear(x, b.pack([w], "q4"))) for b in backends]
        assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])

    def test_many_short_jobs(self) -> None:
        cpu = CpuBackend(4)
        x, weight = numbers(64, 1024), numbers(1024, seed=1)
        wanted = in_numpy(cpu.rms_norm(x, weight, 1e-6))
        for _ in range(300):
            assert np.array_equal(in_numpy(cpu.rms_norm(x, weight, 1e-6)), wanted)

    @pytest.mark.parametrize("isa", ISAS)
    def test_probes_measure(self, isa: str) -> None:
        cpu = backend_of(isa)
        assert read_bandwidth(cpu, size=8 << 20, passes=2) > 1e6
        assert int8_peak(cpu, passes=2, pass_s=0.001) > 1e6
        with pytest.raises(ValueError, match="floats=100; expected a multiple of 262144"):
            cpu.probe_read(numbers(100))
        with pytest.raises(ValueError, match="chunks=0; expected at least 1"):
            cpu.probe_dots(0)

    def test_available_cpus(self) -> None:
        assert 1 <= available_cpus() <= (os.cpu_count() or 1)

    @pytest.mark.parametrize(
        ("membership", "files", "cpus"),
        [
            ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
            ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "a/cpu.max": "300000 100000"}, 2),
            ("0::/a/b\n", {"a/b/cpu.max": "20000 100000"}, 1),
            ("0::/a\n", {"a/cpu.max": "max 100000"}, 8),
            ("0::/\n", {"cpu.max": "240000 100000"}, 2),
            ("0::/not/mounted/here\n", {"cpu.max": "400000 100000"}, 4),
            ("0::/../other\n", {"cpu.max": "500000 100000", "other/cpu.max": "100000 100000"}, 5),
            ("3:memory:/m\n2:cpu,cpuacct:/a\n0::/\n",
             {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"}, 3),
            ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
            ("2:cpu:/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "0"}, 8),
            ("", {}, 8),
        ],
    )  # fmt: skip
    def test_quotas_of_all_control_groups_count(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, files: Any, cpus: int
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        (tmp_path / "membership").write_text(membership)
        for name, text in files.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(text + "\n")
        assert available_cpus(tmp_path / "groups", tmp_path / "membership") == cpus
        assert available_cpus(tmp_path / "groups", tmp_path / "nowhere") == 8

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_a_forked_child_works_alone(self) -> None:
        cpu = CpuBackend(3)
        x, weight = numbers(64, 1024), numbers(1024, seed=1)
        wanted = in_numpy(cpu.rms_norm(x, weight, 1e-6))
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(in_numpy(cpu.rms_norm(x, weight, 1e-6)), wanted) else 1)
        assert os.waitpid(child, 0)[1] == 0
