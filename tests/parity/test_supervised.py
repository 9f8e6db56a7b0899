"""Next-token training: batches by number, Muon against its definition, a killed run against a whole one.

In: tiny random models, the bundled tokenizer, a few steps. It needs PyTorch and transformers.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from text_fixtures import END_ID, PAD_ID, SIZE

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

import deepfast.train.supervised as supervised  # noqa: E402
from deepfast import LLM, SamplingParams  # noqa: E402
from deepfast.config import EngineConfig  # noqa: E402
from deepfast.train.curves import read_rows  # noqa: E402
from deepfast.train.documents import Document, Mixture, Writer  # noqa: E402
from deepfast.train.muon import Muon, orthogonal  # noqa: E402
from deepfast.train.presets import NANO, PRESETS, Shape, Supervised  # noqa: E402
from deepfast.train.stage import Stage  # noqa: E402
from deepfast.train.supervised import (  # noqa: E402
    UNLEARNED,
    MicroBatches,
    collate,
    micro_batches,
    new_model,
    optimiser,
    train,
)
from deepfast.types import UsageError  # noqa: E402

BUNDLED = Path(__file__).resolve().parents[2] / "deepfast" / "bundled"
SHAPE = Shape(SIZE, 64, 2, 2, 1, 32, 64, 512)
MIXTURE = Mixture({"think": 1.0, "no_think": 1.0}, {"sum": 1.0, "letters": 1.0}, checks=False)
PRESET = replace(NANO, compile=False)  # it takes longer than these steps
SETTINGS = Supervised(12 * 512, MIXTURE, 3e-3, 512, 256, 256, warmup=0.1)


def source(seed: int) -> Iterator[Document]:
    return Writer(BUNDLED, MIXTURE, seed).documents()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervised, "CHUNK", 16)
    monkeypatch.setattr(supervised, "SAVE_EVERY", 4)
    monkeypatch.setattr(supervised, "LOG_EVERY", 1)


def model() -> "transformers.PreTrainedModel":
    torch.manual_seed(0)
    return new_model(SHAPE, PAD_ID, END_ID)


def test_micro_batches_are_the_same_in_any_order() -> None:
    forward, backward = (MicroBatches(source, 40, 256, 256, 3) for _ in range(2))
    there = [forward[number] for number in range(40)]
    assert [backward[number] for number in reversed(range(40))][::-1] == there
    assert len({str(batch) for batch in there}) == 40
    for batch in there:
        width = max(len(document.tokens) for document in batch)
        assert len(batch) * width <= 256 or len(batch) == 1


def test_streams_share_no_chunk() -> None:
    batches = MicroBatches(source, 96, 256, 256, 3, 3)
    made: list[int] = []
    make = batches._make
    batches._make = lambda chunk: (made.append(chunk), make(chunk))[1]  # type: ignore[method-assign]
    for number in range(0, 96, 3):
        batches[number]
    assert made == [0, 3]


def test_what_is_padded_or_asked_is_not_learned() -> None:
    documents = [Document([5, 6, 7], [0, 1, 1]), Document([8], [1])]
    found = collate([documents])
    assert found["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert found["labels"].tolist() == [[UNLEARNED, 6, 7], [8, UNLEARNED, UNLEARNED]]


def test_padding_changes_no_loss() -> None:
    """Right padding needs no mask: what is real never looks to its right."""
    first, second = (next(source(seed)) for seed in (1, 4))
    net = model()
    with torch.no_grad():
        counts = [sum(document.mask) for document in (first, second)]
        alone = [net(**collate([[document]])).loss for document in (first, second)]
        both = net(**collate([[first, second]])).loss
    mean = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(both, mean, rtol=1e-5, atol=1e-6)


def test_updates_of_matrices_are_orthogonal() -> None:
    torch.manual_seed(1)
    for rows, columns in ((24, 40), (40, 24), (32, 32)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(3, rows, columns)))
        assert 0.4 < values.min() and values.max() < 1.3


def test_half_of_the_bits_make_the_same_update() -> None:
    """Muon's iteration in bfloat16: its step is the one in float32 within a few per cent."""
    torch.manual_seed(3)
    start, gradient = torch.randn(32, 48), torch.randn(32, 48)
    steps = []
    for products in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        Muon([weight], [], lr=0.01, products=products).step()
        assert weight.dtype == torch.float32
        steps.append(weight.detach() - start)
    assert (steps[0] - steps[1]).norm() < 0.05 * steps[0].norm()
    assert steps[0].norm() > 0


def test_attention_in_float32_inside_bfloat16() -> None:
    """The one that CPUs train with: causal, groups of heads, in the layout that transformers expects."""
    net = model()
    batch = collate([[next(source(seed)) for seed in (1, 4)]])
    wanted = net(**batch).logits
    net.set_attn_implementation(supervised.WIDE_ATTENTION)
    torch.testing.assert_close(net(**batch).logits, wanted, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = net(**batch).loss
    loss.backward()
    assert all(weight.grad is not None for weight in net.parameters())
    assert "attn" not in net.config.to_json_string()


def test_bfloat16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        assert supervised.mixed(NANO) == able
        assert not supervised.mixed(replace(NANO, precision="float32"))


def test_what_is_no_matrix_gets_adamw() -> None:
    torch.manual_seed(2)
    ours, theirs = (torch.nn.Parameter(torch.arange(6.0)) for _ in range(2))
    mine = Muon([], [ours], lr=0.01)
    other = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(5):
        gradient = torch.randn(6)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        other.step()
    torch.testing.assert_close(ours, theirs)


def test_every_parameter_is_trained_once() -> None:
    for kind in ("muon", "adamw"):
        net = model()
        made = optimiser(net, replace(SETTINGS, optimiser=kind))
        held = [id(weight) for group in made.param_groups for weight in group["params"]]
        assert sorted(held) == sorted(id(weight) for weight in net.parameters())


def test_a_step_is_shared_evenly_or_refused() -> None:
    assert [micro_batches(NANO.cold_start, processes) for processes in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(UsageError, match="3 processes"):
        micro_batches(NANO.cold_start, 3)
    for preset in PRESETS.values():
        for settings in (preset.cold_start, preset.fusion, preset.distill.off_policy):
            assert micro_batches(settings, 1) >= 1


def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = Stage(tmp_path / "whole", "cold_start"), Stage(tmp_path / "killed", "cold_start")
    train(model(), source, SETTINGS, whole, PRESET, BUNDLED)

    class Kill(Exception):
        pass

    def stop(number: int) -> None:
        if number == 22:  # of 24 micro-batches
            raise Kill

    take = MicroBatches.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(MicroBatches, "__getitem__", lambda self, number: (stop(number), take(self, number))[1])
        with pytest.raises(Kill):
            train(model(), source, SETTINGS, killed, PRESET, BUNDLED)
    assert not killed.done and killed.states()
    train(model(), source, SETTINGS, killed, PRESET, BUNDLED)
    assert killed.done and killed.cost()["steps"] == whole.cost()["steps"] == 12
    rows = [read_rows(stage.run / "log.csv") for stage in (whole, killed)]
    assert len(rows[0]) == len(rows[1])
    for mine, other in zip(*rows, strict=True):
        assert mine["step"] == other["step"]
        assert mine.get("loss", 0.0) == pytest.approx(other.get("loss", 0.0), rel=1e-4)
    assert rows[0][-2]["loss"] < rows[0][0]["loss"]
    opened = [transformers.AutoModelForCausalLM.from_pretrained(stage.directory) for stage in (whole, killed)]
    for one, two in zip(*(net.parameters() for net in opened), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    _same_greedy_tokens(whole.directory, opened[0])
    for name in ("curves.png", "tensorboard", "cost.json"):
        assert (whole.run / name).exists()


def _same_greedy_tokens(directory: Path, opened: "transformers.PreTrainedModel") -> None:
    ids = next(source(9)).tokens[:20]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    with LLM(directory, config=EngineConfig(threads=1)) as llm:
        ours = llm.generate([ids], params)[0].token_ids
    settings = {"do_sample": False, "max_new_tokens": 12}
    opened.generation_config.eos_token_id = None
    theirs = opened.generate(torch.tensor([ids]), **settings, temperature=None, top_p=None, top_k=None)
    assert list(ours) == theirs[0, len(ids) :].tolist()
