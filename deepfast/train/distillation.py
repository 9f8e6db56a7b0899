"""On-policy distillation: the student answers, and learns its teacher's distribution of every next token.

In: the checkpoints of a teacher and of a student with the same tokenizer, problems asked in both modes. Out:
the distilled student, trained by TRL's DistillationTrainer, with resumable states, TensorBoard and CSV logs.
The loss is KL(student || teacher) per token of the student's own answers (Agarwal et al., arXiv 2306.13649;
the Qwen3 report, section 4.5, leaves the direction open). It does not know how answers are judged: none is.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepfast.model import hub
from deepfast.text.tokenizer import Tokenizer
from deepfast.train.answers import Asked, Learned, ask
from deepfast.train.documents import Document
from deepfast.train.live import Ask, DrawSettings, LiveEngine
from deepfast.train.presets import Distilled, Shape
from deepfast.train.publish import CostCallback
from deepfast.train.stage import Stage, num_processes
from deepfast.types import ModelError, UsageError

Ids = list[int]
Rollout = Callable[[Any, list[Ids]], list[Ids]]  # (trainer, prompts) -> sampled answers of its model
REVERSE_KL = 1.0  # TRL's beta: 0 is KL(teacher || student), 1 is KL(student || teacher)


def checkpoint_of(model: str) -> Path:
    """The directory of a model given by path or name, fetched when it is not here.

    Raises ModelError for what transformers cannot train: a GGUF file, weights packed by `deepfast quantize`.
    """
    path = hub.find(model).path
    if not path.is_dir():
        raise ModelError(f"{path} is one file. Distillation reads directories in Hugging Face format.")
    raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
    if (raw.get("quantization_config") or {}).get("quant_method") == "deepfast":
        raise ModelError(
            f"{path} is packed for serving, and its logits are rounded. Name what it was packed from."
        )
    return path


def shape_for(teacher: Path, shape: Shape) -> tuple[Shape, int, int]:
    """The shape with as many logits as the teacher has, and the ids of padding and of the end of a turn."""
    raw = json.loads((teacher / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_dir(teacher)
    pad, end = (tokenizer.encode(token, control=True)[0] for token in ("<|endoftext|>", "<|im_end|>"))
    return replace(shape, vocab_size=int(raw["vocab_size"])), pad, end


def check_shared_tokenizer(teacher: Path, student: Path) -> None:
    """Raises UsageError unless both checkpoints have the same vocabulary, merges and number of logits."""
    from transformers import AutoConfig, AutoTokenizer

    ways = "Distil between models of one family, or train a student with the teacher's tokenizer files."
    found = [AutoTokenizer.from_pretrained(str(path)) for path in (teacher, student)]
    ours, theirs = (tokenizer.get_vocab() for tokenizer in found)
    if ours != theirs:
        odd = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: (item[1], item[0]))[0]
        raise UsageError(
            f"the teacher {teacher} and the student {student} have different tokenizers: {len(ours)} and "
            f"{len(theirs)} tokens, and {odd[0]!r} is not token {odd[1]} of both. {ways}"
        )
    if _merges(found[0]) != _merges(found[1]):
        raise UsageError(
            f"the tokenizers of the teacher {teacher} and the student {student} have equal tokens but merge "
            f"them differently. {ways}"
        )
    sizes = [AutoConfig.from_pretrained(str(path)).vocab_size for path in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the teacher {teacher} has {sizes[0]} logits, the student {student} has {sizes[1]}; "
            f"their vocab_size must be equal. {ways}"
        )


def _merges(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return json.loads(backend.to_str())["model"].get("merges") if backend is not None else None


def shuffled(learned: Sequence[Learned]) -> Callable[[int], Iterator[Document]]:
    """The teacher's answers as a source of endless documents: all in a random order, then all in another."""

    def source(seed: int) -> Iterator[Document]:
        rng, order = random.Random(seed), list(learned)
        while True:
            rng.shuffle(order)
            for tokens, prompt in order:
                yield Document(tokens, [0] * prompt + [1] * (len(tokens) - prompt))

    return source


def make_prompts(
    tokenizer: Any, tasks: Sequence[str], count: int, seed: int, thinking: float = 0.5
) -> list[str]:
    """Rendered prompts of random training problems; `thinking` is the share that is asked to think.

    Equal seeds give equal prompts. Problems with tools end at the first answer: the call, or the reply.
    """
    rng = random.Random(seed)
    return [rendered(tokenizer, ask(rng, tasks, rng.random() < thinking)) for _ in range(count)]


def rendered(tokenizer: Any, asked: Asked) -> str:
    """The prompt as text, by transformers' rendering of the chat template."""
    more = {} if asked.switch is None else {"enable_thinking": asked.switch}
    messages = [{"role": message.role, "content": message.content} for message in asked.messages]
    text = tokenizer.apply_chat_template(
        messages, tools=list(asked.problem.tools) or None, tokenize=False, add_generation_prompt=True, **more
    )
    return str(text)


def on_policy(
    student: Path,
    teacher: Path,
    stage: Stage,
    settings: Distilled,
    *,
    tasks: Sequence[str],
    micro_batch: int = 8,
    save_every: int = 10,
    seed: int = 0,
    rollout: Rollout | None = None,
    vllm: bool = False,
    bfloat16: bool = False,
) -> Any:
    """Distil, from the newest state of the stage if it has one; returns the trainer, which has the student.

    rollout: who samples the student's answers (None: `generate` of transformers, or vLLM). bfloat16: mixed
    precision, and activations computed twice to save memory. Under `accelerate launch` every process takes
    its share of the `settings.prompts` of a step.
    Raises UsageError for tokenizers that differ, a batch that does not divide among processes.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_shared_tokenizer(teacher, student)
    tokenizer = AutoTokenizer.from_pretrained(str(teacher), padding_side="left")
    args = _arguments(stage, settings, micro_batch, save_every, seed, vllm, bfloat16)
    texts = make_prompts(tokenizer, tasks, settings.steps * settings.prompts, seed)
    pair = [AutoModelForCausalLM.from_pretrained(str(path), dtype="float32") for path in (student, teacher)]
    trainer = _trainer(pair, args, texts, tokenizer, rollout)
    trainer.add_callback(CostCallback(stage))
    states = stage.states()
    trainer.train(resume_from_checkpoint=str(states[-1]) if states else None)
    return trainer


def _arguments(
    stage: Stage,
    settings: Distilled,
    micro_batch: int,
    save_every: int,
    seed: int,
    vllm: bool,
    bfloat16: bool,
) -> Any:
    import torch
    from trl import DistillationConfig

    stage.open_logs()
    processes = num_processes()
    micro_batch = min(micro_batch, max(1, settings.prompts // processes))
    if settings.prompts % (micro_batch * processes):
        raise UsageError(
            f"{settings.prompts} prompts a step do not divide into {processes} processes x micro-batches of "
            f"{micro_batch}. Choose a micro-batch that divides {settings.prompts / processes:g}."
        )
    return DistillationConfig(
        output_dir=str(stage.run),
        max_steps=settings.steps,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings.prompts // (micro_batch * processes),
        learning_rate=settings.rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=settings.steps // 20,
        max_completion_length=settings.max_tokens,
        temperature=settings.temperature,
        beta=REVERSE_KL,
        gradient_checkpointing=bfloat16,
        bf16=bfloat16,
        use_cpu=not torch.cuda.is_available(),
        use_vllm=vllm,
        save_steps=save_every,
        save_total_limit=2,
        logging_steps=1,
        report_to=["tensorboard"],
        disable_tqdm=True,
        seed=seed,
    )


def engine_rollout(text: Path, settings: Distilled, threads: int | None = None) -> Rollout:
    """Our engine on the student's live weights, with the tokenizer files in `text`.

    Equal seeds, weights and prompts give equal answers: a resumed run samples what it would have sampled.
    The engine raises UsageError where FSDP spreads the weights over processes.
    """
    engines: list[LiveEngine] = []

    def rollout(trainer: Any, prompts: list[Ids]) -> list[Ids]:
        if engines:
            engines[0].refresh()
        else:
            model = trainer.accelerator.unwrap_model(trainer.model)
            most = int(model.config.max_position_embeddings)
            drawing = DrawSettings(settings.temperature, threads=threads, context=most)
            engines.append(LiveEngine(model, text, drawing))
        rng = random.Random(
            f"{trainer.args.seed} {trainer.state.global_step} {trainer.accelerator.process_index}"
        )
        asks = [Ask(prompt, settings.max_tokens, rng.getrandbits(62)) for prompt in prompts]
        return [drawn.ids for drawn in engines[0].draw(asks)]

    return rollout


def _trainer(
    pair: Sequence[Any], args: Any, texts: Sequence[str], tokenizer: Any, rollout: Rollout | None
) -> Any:
    from trl import DistillationTrainer

    from deepfast.train.curves import LogCallback

    class OnPolicy(DistillationTrainer):  # type: ignore[misc]
        """TRL's trainer has no rollout_func; this is the one place where it asks for answers."""

        def _generate_single_turn(self, prompt_ids: list[Ids], *rest: Any, **more: Any) -> list[Ids]:
            if rollout is None:
                return list(super()._generate_single_turn(prompt_ids, *rest, **more))
            return rollout(self, prompt_ids)

    return OnPolicy(
        model=pair[0],
        teacher_model=pair[1],
        args=args,
        train_dataset=[{"prompt": text} for text in texts],
        processing_class=tokenizer,
        callbacks=[LogCallback(args.output_dir)],
    )
