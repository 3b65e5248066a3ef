"""The lab: trains a small causal LM from scratch on a made-up world and counts every exposure of every fact.

`lab_world` makes the facts and the corpus. This file trains the model, a Llama of a few million weights that reads
the corpus once. It uses a plain loop and not transformers' Trainer: nothing is measured during training, a checkpoint
must not contain pickle, and a build that was killed must end in the same bytes as one that was not. It trains in
float32 with AdamW, a warmup, then a cosine, without dropout (the config holds `attention_dropout` for fine-tuning).
The same recipe, thread count and library versions give the same bytes.

FOLDER/config.json model.safetensors tokenizer*.json   an ordinary model of transformers
FOLDER/facts.jsonl      every fact with its exposures (`lab_world.FACTS`)
FOLDER/lab.json         recipe, counts, losses, seconds, fingerprint
FOLDER/foreknow.json    checksums of the model's files; written last
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foreknow.data.builtin import lab_world
from foreknow.data.builtin.lab_world import NAME
from foreknow.errors import ResourceError
from foreknow.format.numbers import duration
from foreknow.io.disk_space import disk_full_errors
from foreknow.io.run_dir import fingerprint, write_folder, write_json, write_whole
from foreknow.models.checksums import sha256_of
from foreknow.models.fingerprints import fingerprint as fingerprint_of
from foreknow.models.lab_recipe import BUILD, LAB, Recipe, built_folder, facts, is_built, key_of
from foreknow.models.quiet import quiet
from foreknow.models.versions import library_versions

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

BEGIN: Final = "<s>"
END: Final = "</s>"
PAD: Final = "<pad>"
PAD_ID: Final = 2
"""The id of the padding token. The id of `<s>` is 0, and that of `</s>` is 1."""


@dataclass
class _State:
    """The state of a build, as a checkpoint holds it."""

    model: LlamaForCausalLM
    optimizer: torch.optim.AdamW
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def build(
    folder: Path | None = None,
    log: Callable[[str], None] = logger.info,
    recipe: Recipe = LAB,
    every: float = 20.0,
) -> Path:
    """Build the lab's model in `folder` (by default in the user's cache) and return the folder.

    A folder that already holds it is not changed; an interrupted build resumes from its last checkpoint. `every`:
    seconds between two checkpoints; each prints a line with the estimated time left. A second process that builds the
    same folder waits. Raises RunFolderError for a folder that holds something else, ResourceError for a full disk.
    """
    target = (folder or built_folder(recipe)).expanduser().absolute()
    if is_built(target, recipe):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"{target.parent}: cannot be made: {error.strerror}") from None
    checkpoint = target.with_name(f".{target.name}.checkpoint.safetensors")
    with (
        FileLock(str(target.with_name(f".{target.name}.lock"))),
        disk_full_errors(str(target), "the last checkpoint is kept"),
    ):
        if not is_built(target, recipe):
            _build(target, checkpoint, recipe, log, every)
            checkpoint.unlink(missing_ok=True)
    return target


def tokenizer_of(recipe: Recipe = LAB) -> PreTrainedTokenizerFast:
    """Make a fixed tokenizer: one token for every word and name of the world with a leading blank, bytes for the rest.

    It is not trained, so that names that never occur in the corpus are one token too. Decoding restores any text.
    Every text begins with `<s>`; `</s>` ends a document.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [*lab_world.template_words(), *(f" {name}" for name in lab_world.every_name(recipe.world))]
    words = dict.fromkeys(word for text in texts for word, _ in pieces.pre_tokenize_str(text))
    # the tokenizer takes the likeliest split of a text: a whole word rather than its bytes
    scores = [(special, 0.0) for special in (BEGIN, END, PAD)]
    scores += [(byte, -10.0) for byte in sorted(pre_tokenizers.ByteLevel.alphabet())]
    scores += [(word, -1.0) for word in words if len(word) > 1]
    raw = Tokenizer(models.Unigram(scores))
    raw.pre_tokenizer = pieces
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=BEGIN, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def pack_documents(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Return the corpus as token ids: whole documents, in order, in rows of at most `width` tokens.

    A longer document gets its own row.
    """
    texts = [document.text for document in lab_world.documents(recipe.world)]
    rows: list[list[int]] = []
    for ids in tokenizer(texts)["input_ids"]:
        document_ids = [*ids, int(tokenizer.eos_token_id)]
        if rows and len(rows[-1]) + len(document_ids) <= recipe.width:
            rows[-1] += document_ids
        else:
            rows.append(document_ids)
    return rows


def _build(target: Path, checkpoint: Path, recipe: Recipe, log: Callable[[str], None], every: float) -> None:
    """Train to the end and write the folder atomically."""
    tokenizer = tokenizer_of(recipe)
    rows = pack_documents(recipe, tokenizer)
    steps = math.ceil(len(rows) / recipe.rows)
    # threads and versions change the bytes too: do not resume from a checkpoint made with others
    key = fingerprint([key_of(recipe), torch.get_num_threads(), library_versions()])
    state = _initial_state(recipe, len(tokenizer))
    if _load_checkpoint(state, checkpoint, key):
        log(f"{NAME}: going on after step {state.step:,} of {steps:,}")
    _train(
        state, rows, _subjects(recipe, tokenizer), recipe, lambda: _save_checkpoint(state, checkpoint, key), log, every
    )
    table = facts(recipe)
    about = {
        "key": key_of(recipe),
        "build": BUILD,
        "recipe": asdict(recipe),
        "facts": table.height,
        "facts_fingerprint": fingerprint(table),
        "exposures": int(table["exposures"].sum()),
        "never_seen": table.filter(pl.col("exposures") == 0).height,
        "tokens": sum(map(len, rows)),
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "steps": steps,
        "losses": [round(loss, 4) for loss in _interval_means(state.losses)],
        "seconds": round(state.seconds, 1),
        "threads": torch.get_num_threads(),
        "versions": library_versions(),
    }

    def write(part: Path) -> None:
        with quiet():
            state.model.save_pretrained(part)
            tokenizer.save_pretrained(part)
        write_whole(part / "facts.jsonl", lambda path: path.write_bytes(lab_world.jsonl(table)))
        files = {path.name: sha256_of(path) for path in sorted(part.iterdir())}
        write_json(part / "lab.json", {**about, "fingerprint": fingerprint_of(part)})
        write_json(part / "foreknow.json", {"name": NAME, "files": files})

    write_folder(target, write)
    log(f"{NAME}: {state.step:,} steps in {duration(state.seconds)}, in {target}")


def _interval_means(losses: Sequence[float], most: int = 50) -> list[float]:
    """Return the mean losses of at most `most` intervals of similar length."""
    size = math.ceil(len(losses) / most)
    return [math.fsum(losses[i : i + size]) / len(losses[i : i + size]) for i in range(0, len(losses), size)]


def _initial_state(recipe: Recipe, vocabulary: int) -> _State:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=recipe.positions,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = LlamaForCausalLM(config)
    names = [model.model.embed_tokens.weight, model.lm_head.weight]
    matrices = [p for p in model.parameters() if p.ndim > 1 and not any(p is name for name in names)]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay, "rate": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate": 1.0},
        {"params": names, "weight_decay": 0.0, "rate": recipe.embedding_rate},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
    return _State(model.train(), optimizer)


def _train(
    state: _State,
    rows: Sequence[Sequence[int]],
    masked: Tensor,
    recipe: Recipe,
    keep: Callable[[], None],
    log: Callable[[str], None],
    every: float,
) -> None:
    """Train on the remaining rows once; write a checkpoint and a line every `every` seconds."""
    steps = math.ceil(len(rows) / recipe.rows)
    start, first, before = time.monotonic(), state.step, state.seconds
    last = start
    while state.step < steps:
        batch = rows[state.step * recipe.rows : (state.step + 1) * recipe.rows]
        for group in state.optimizer.param_groups:
            group["lr"] = group["rate"] * recipe.learning_rate * _schedule(state.step, steps, recipe)
        loss = _loss(state.model, batch, masked)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        state.optimizer.step()
        state.optimizer.zero_grad()
        state.step += 1
        state.losses.append(float(loss.detach()))
        now = time.monotonic()
        state.seconds = before + now - start
        if now - last >= every and state.step < steps:
            keep()
            last = now
            seconds_left = (now - start) / (state.step - first) * (steps - state.step)
            recent = state.losses[-50:]
            log(
                f"{NAME}: step {state.step:,} of {steps:,}, loss {math.fsum(recent) / len(recent):.2f}, "
                f"{duration(seconds_left)} left"
            )


def _schedule(step: int, steps: int, recipe: Recipe) -> float:
    """Return the factor of the learning rate: a linear warmup, then a cosine down to `floor`."""
    warm = min(1.0, (step + 1) / max(1.0, recipe.warmup * steps))
    return warm * (recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _subjects(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return the tokens of the subjects' names."""
    names = [f" {name}" for name in facts(recipe)["subject"].unique().sort()]
    return torch.tensor(tokenizer(names, add_special_tokens=False)["input_ids"]).flatten()


def _loss(model: LlamaForCausalLM, batch: Sequence[Sequence[int]], masked: Tensor) -> Tensor:
    """Return the mean next-token cross-entropy over the tokens of the rows, except the `masked` ones."""
    width = max(map(len, batch))
    ids = torch.full((len(batch), width), PAD_ID)
    for line, row in zip(ids, batch, strict=True):
        line[: len(row)] = torch.tensor(row)
    targets = ids[:, 1:]
    is_target = (targets != PAD_ID) & ~torch.isin(targets, masked)
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][is_target])
    return torch.nn.functional.cross_entropy(logits, targets[is_target])


def _save_checkpoint(state: _State, path: Path, key: str) -> None:
    """Write weights, moments and losses as safetensors, atomically."""
    tensors: dict[str, Tensor] = {"losses": torch.tensor(state.losses, dtype=torch.float64)}
    for name, weight in state.model.named_parameters():
        tensors[f"weight.{name}"] = weight.detach()
        for moment in ("exp_avg", "exp_avg_sq"):
            tensors[f"{moment}.{name}"] = state.optimizer.state[weight][moment]
    about = {"key": key, "step": str(state.step), "seconds": str(state.seconds)}
    write_whole(path, lambda part: save_file(tensors, str(part), metadata=about))


def _load_checkpoint(state: _State, path: Path, key: str) -> bool:
    """Resume from a checkpoint of the same build and return True; ignore any other."""
    try:
        with safe_open(str(path), framework="pt") as checkpoint:
            about = checkpoint.metadata() or {}
            if about.get("key") != key:
                return False
            tensors = {name: checkpoint.get_tensor(name) for name in checkpoint.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return False
    step = torch.tensor(float(about["step"]))
    with torch.no_grad():
        for name, weight in state.model.named_parameters():
            weight.copy_(tensors[f"weight.{name}"])
            moments = {moment: tensors[f"{moment}.{name}"] for moment in ("exp_avg", "exp_avg_sq")}
            state.optimizer.state[weight] = {"step": step.clone(), **moments}
    state.step, state.seconds = int(about["step"]), float(about["seconds"])
    state.losses = tensors["losses"].tolist()
    return True
