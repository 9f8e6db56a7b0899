"""The recipe of the bundled model: its decoder is Qwen3, its documents are the template's.

In: recipes/, a tiny random model. It trains three steps at most and needs PyTorch and transformers.
"""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "recipes"))
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import nano  # noqa: E402
import nano_data  # noqa: E402
import nano_export  # noqa: E402
import nano_model  # noqa: E402

TINY = nano_model.NanoConfig(
    vocab_size=640, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    head_dim=32, intermediate_size=64,
)  # fmt: skip


def documents(count: int) -> list[nano_data.Document]:
    writer = nano_data.Writer(nano_data.train_tokenizer(), 3, nano_data.TASK_SHARES)
    return [writer.document() for _ in range(count)]


def test_the_decoder_is_qwen3() -> None:
    torch.manual_seed(0)
    model = nano_model.Nano(TINY)
    config = nano_export._config(model, 616)
    del config["quantization_config"]
    oracle = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**config)).eval()
    missing = oracle.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing in ([], ["lm_head.weight"])
    oracle.tie_weights()
    tokens = torch.randint(0, 614, (1, 24))
    with torch.no_grad():
        ours = model(tokens, nano_model.document_mask(torch.zeros(1, 24)), torch.arange(24))
        theirs = oracle(tokens).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_packed_documents_do_not_see_each_other() -> None:
    model = nano_model.Nano(TINY)
    first, second = torch.randint(0, 614, (1, 9)), torch.randint(0, 614, (1, 7))
    numbers = torch.tensor([[0] * 9 + [1] * 7])
    with torch.no_grad():
        packed = model(torch.cat((first, second), 1), nano_model.document_mask(numbers), torch.arange(9, 16))
        alone = model(second, nano_model.document_mask(torch.zeros(1, 7)), torch.arange(7))
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def test_documents_are_what_the_template_renders() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "deepfast/bundled")
    checked = 0
    for document in documents(300):
        given = tokenizer.decode([t for t, m in zip(document.tokens, document.mask, strict=True) if not m])
        if "<think>" in given and not given.endswith("<think>\n\n</think>\n\n"):
            continue  # a thought cut short is no template's work
        messages = []
        for turn in given.split("<|im_start|>")[1:]:
            role, _, content = turn.partition("\n")
            if content.endswith("<|im_end|>\n"):
                messages.append({"role": role, "content": content.removesuffix("<|im_end|>\n")})
        closed = given.endswith("</think>\n\n")
        prompt = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=not closed
        )
        assert prompt == given
        checked += 1
    assert checked > 200


def test_only_the_response_is_learned() -> None:
    tokens, numbers, labels = nano.collate([documents(2)], "cpu")
    end = nano_data.train_tokenizer().token_to_id("<|im_end|>")
    assert (labels[labels >= 0] == end).sum() == 2
    assert ((labels < 0) | (numbers >= 0)).all()
    assert tokens.shape == labels.shape == (1, nano.ROW_LENGTH)


def test_rows_hold_whole_documents() -> None:
    docs = documents(200)
    rows = nano_data.pack(docs, 320)
    assert sum(map(len, rows)) == len(docs)
    assert all(sum(len(document.tokens) for document in row) <= 320 for row in rows)


def test_a_resumed_run_is_an_undisturbed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nano, "DOCUMENTS_PER_CHUNK", 60)
    tokenizer = nano_data.train_tokenizer()
    states = []
    for name, stops in (("whole", [12_000]), ("resumed", [6_000, 12_000])):
        work = tmp_path / name
        work.mkdir()
        for stop in stops:
            torch.manual_seed(0)
            model = nano_model.Nano(TINY)
            nano.train(model, tokenizer, stop, work, "cpu")
        states.append(model.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-4, atol=1e-5)
