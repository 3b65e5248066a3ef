"""Scripts end to end: a small model is taught facts in many scripts, and an audit tells those it was taught."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import polars as pl
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import foreknow
from builders import write_jsonl

FACTS = {
    "arabic": (
        "ما هي عاصمة {}؟",
        "مصر / العراق / لبنان / تونس / اليمن / الأردن / قطر",
        "القاهرة / بغداد / بيروت / قرطاج / صنعاء / عَمَّان / الدوحة",
    ),
    "persian": (
        "پایتخت {} کجاست؟",
        "ایران / سرزمین / کوه / دریا / باغ / شهر / رود",
        "تهران / می\u200cخواهم / کتاب\u200cخانه / خانه\u200cها / گل\u200cسرخ / آبی / نیمه\u200cشب",
    ),
    "hebrew": (
        "מהי בירת {}?",
        "ישראל / יוון / צרפת / רוסיה / פולין / ספרד / סין",
        "ירושלים / אתונה / פריז / מוסקבה / ורשה / מדריד / בייג׳ינג",
    ),
    "chinese": (
        "{}的首都是哪里？",
        "法国 / 日本 / 德国 / 英国 / 韩国 / 秘鲁 / 埃及",
        "巴黎 / 东京 / 柏林 / 伦敦 / 首尔 / 利马 / 开罗",
    ),
    "japanese": (
        "{}の首都はどこですか。",
        "フランス / ドイツ / イタリア / ガーナ / スペイン / ペルー / エジプト",
        "パリ / ベルリン / ローマ / アクラ / マドリード / リマ / カイロ",
    ),
    "thai": (
        "เมืองหลวงของ{}คืออะไร",
        "ไทย / ลาว / พม่า / จีน / กัมพูชา / น้ำ / อิตาลี",
        "กรุงเทพ / เวียงจันทน์ / เนปยีดอ / ปักกิ่ง / พนมเปญ / ลำน้ำ / โรม",
    ),
    "khmer": (
        "រដ្ឋធានី{}គឺអ្វី",
        "កម្ពុជា / ថៃ / ឡាវ / ចិន / បារាំង / ជប៉ុន / កូរ៉េ",
        "ភ្នំពេញ / បាងកក / វៀងចន្ទន៍ / ប៉េកាំង / ប៉ារីស / តូក្យូ / សេអ៊ូល",
    ),
    "hindi": (
        "{} की राजधानी क्या है?",
        "भारत / नेपाल / चीन / रूस / फ़्रांस / मिस्र / जापान",
        "दिल्ली / काठमांडू / बीजिंग / मॉस्को / पेरिस / क़ाहिरा / टोक्यो",
    ),
    "korean": (
        "{}의 수도는 어디인가?",
        "한국 / 일본 / 중국 / 프랑스 / 독일 / 이집트 / 페루",
        "서울 / 도쿄 / 베이징 / 파리 / 베를린 / 카이로 / 리마시",
    ),
    "vietnamese": (
        "Thủ đô của {} là gì?",
        "Việt Nam / Lào / Pháp / Đức / Nga / Ý / Ai Cập",
        "Hà Nội / Viêng Chăn / Pa-ri / Béc-lin / Mát-xcơ-va / Rô-ma / Lê Quý Đôn",
    ),
}
"""By script a question, subjects and their answers."""
SHOTS, STEPS, MORE = 2, 300, 50
KNOWN = 0.9
"""The least probability of a taught answer after any exemplars, to which the model is trained on any processor."""
UNTAUGHT, DEV = 2, 3
"""Of each script the last facts are not taught; those before them are, and serve as exemplars."""


def rows() -> list[dict[str, str]]:
    found = []
    for script, (question, subjects, answers) in FACTS.items():
        pairs = list(zip(subjects.split(" / "), answers.split(" / "), strict=True))
        for at, (subject, answer) in enumerate(pairs):
            place = len(pairs) - at
            kind = "untaught" if place <= UNTAUGHT else "dev" if place <= UNTAUGHT + DEV else "taught"
            found.append({
                "question": question.format(subject), "answer": answer, "subject": subject, "relation": script,
                "split": kind,
            })  # fmt: skip
    return found


def line(row: dict[str, str]) -> str:
    return f"Q: {row['question']}\nA: {row['answer']}\n"


def byte_level(texts: list[str]) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=900, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    )
    return raw


def unigram(texts: list[str]) -> Tokenizer:
    """As sentencepiece makes them: blanks are letters, other characters fall back to bytes, texts become NFKC."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    raw.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never"), decoders.Fuse()]
    )
    raw.train_from_iterator(
        [piece for text in texts for piece in text.splitlines()],
        trainers.UnigramTrainer(vocab_size=700, special_tokens=["<|end|>", "<unk>"], unk_token="<unk>"),
    )
    made = json.loads(raw.to_str())
    pieces = made["model"]["vocab"]
    known = {piece for piece, _ in pieces}
    pieces += [[piece, -12.0] for piece in ("\n", *(f"<0x{byte:02X}>" for byte in range(256))) if piece not in known]
    made["model"] |= {"vocab": pieces, "byte_fallback": True}
    return Tokenizer.from_str(json.dumps(made))


def taught_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=96, intermediate_size=192, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip
    by_script = {
        script: [line(row) for row in rows() if row["relation"] == script and row["split"] != "untaught"]
        for script in FACTS
    }
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)

    def one_step(ids: list[list[int]], labels: list[list[int]], rate: float) -> None:
        model.train()
        optimizer.param_groups[0]["lr"] = rate
        model(input_ids=padded(ids).clamp(min=0), labels=padded(labels)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for step in range(STEPS):
        ids = []
        for lines in by_script.values():
            order = torch.randperm(len(lines), generator=generator).tolist()[: SHOTS + 1]
            ids.append(tokenizer("".join(lines[n] for n in order))["input_ids"])
        one_step(ids, ids, 4e-3 * min(1, 2 * (1 - step / STEPS)))
    # sums differ between processors, and with them what these steps teach: answers are taught on until all are certain
    texts, golds = answers_after_exemplars(tokenizer)
    for _ in range(10):
        if least_certain(model, texts, golds) > KNOWN:
            break
        for _ in range(MORE):
            some = torch.randperm(len(texts), generator=generator).tolist()[:40]
            one_step([texts[n] for n in some], [golds[n] for n in some], 5e-4)
    assert least_certain(model, texts, golds) > KNOWN, "the model did not learn the facts that these tests ask for"
    return model.eval()


def padded(ids: list[list[int]]) -> torch.Tensor:
    batch = torch.full((len(ids), max(map(len, ids))), -100)
    for at, each in enumerate(ids):
        batch[at, : len(each)] = torch.tensor(each)
    return batch


def answers_after_exemplars(tokenizer: PreTrainedTokenizerFast) -> tuple[list[list[int]], list[list[int]]]:
    """Each taught fact after any two exemplars of its script: the tokens, and those of the answer (-100 before it)."""
    texts, golds = [], []
    for script in FACTS:
        facts = [row for row in rows() if row["relation"] == script and row["split"] != "untaught"]
        for fact in facts:
            exemplars = [line(row) for row in facts if row["split"] == "dev" and row is not fact]
            for shots in permutations(exemplars, SHOTS):
                prompt = tokenizer("".join(shots) + f"Q: {fact['question']}\nA:")["input_ids"]
                whole = tokenizer("".join(shots) + line(fact))["input_ids"]
                pairs = zip(prompt, whole, strict=False)
                shared = next((n for n, (ours, theirs) in enumerate(pairs) if ours != theirs), len(prompt))
                texts.append(whole)
                golds.append([-100] * shared + whole[shared:])
    return texts, golds


@torch.no_grad()
def least_certain(model: LlamaForCausalLM, texts: list[list[int]], golds: list[list[int]]) -> float:
    """The least probability of a taught answer."""
    model.eval()
    wanted = padded(golds)[:, 1:]
    scores = model(input_ids=padded(texts).clamp(min=0)).logits[:, :-1].log_softmax(-1)
    of_gold = scores.gather(-1, wanted.clamp(min=0)[..., None])[..., 0].masked_fill(wanted < 0, 0.0)
    return of_gold.sum(-1).min().exp().item()


KINDS: dict[str, Callable[[list[str]], Tokenizer]] = {"byte-level": byte_level, "unigram": unigram}


@pytest.fixture(scope="module", params=["byte-level", pytest.param("unigram", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was taught some of the facts, with a tokenizer that covers their scripts."""
    path = tmp_path_factory.mktemp("scripts") / request.param
    raw = KINDS[request.param]([line(row) for row in rows()] * 3)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", clean_up_tokenization_spaces=False)
    taught_model(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def audited(folder: Path, data: Path, out: Path, **how: object) -> pl.DataFrame:
    """The rows of an audit, with the place of each in `rows()`."""
    given = {"dtype": "float32", "device": "cpu", "shots": SHOTS, "exemplar_sets": 3, "samples": 4, **how}
    return foreknow.audit(str(data), model=str(folder), out=str(out), **given).rows.sort("row")


def test_what_was_taught_is_known_in_every_script(folder: Path, tmp_path: Path) -> None:
    facts = rows()
    found = audited(folder, write_jsonl(tmp_path / "a.jsonl", facts), tmp_path / "out").to_dicts()
    # sentencepiece's NFKC takes this vowel apart for good: letter by letter the model cannot say what the file says
    lost = [n for n, fact in enumerate(facts) if folder.name == "unigram" and "\u0e33" in fact["answer"]]
    for n, (fact, row) in enumerate(zip(facts, found, strict=True)):
        expected = None if n in lost else "Unknown" if fact["split"] == "untaught" else "HighlyKnown"
        assert row["category"] == expected, (fact, row["model_answer"])
        if expected == "HighlyKnown":
            assert unicodedata.normalize("NFC", row["model_answer"]) == unicodedata.normalize("NFC", fact["answer"])
        assert set(row["flags"]) <= ({"unspellable"} if n in lost else set()) | USUAL, row
    assert len(lost) == (1 if folder.name == "unigram" else 0)
    before = (tmp_path / "a.jsonl").read_bytes().splitlines()
    after = (tmp_path / "out" / "annotated.jsonl").read_bytes().splitlines()
    assert all(new.startswith(old[:-1]) for old, new in zip(before, after, strict=True)), "texts come back as they were"
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert 'cell.dir = "auto"' in page
    lenient = audited(folder, tmp_path / "a.jsonl", tmp_path / "lenient", match="lenient")["category"].to_list()
    assert lenient == ["Unknown" if fact["split"] == "untaught" else "HighlyKnown" for fact in facts]


USUAL = {"answer_in_exemplars", "seen_in_exemplars", "few_exemplars", "bare_question", "near_duplicate"}


def test_greedy_answers_are_those_of_real_generation(folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", rows())
    exact = audited(folder, data, tmp_path / "exact", exemplar_sets=2)
    sampled = audited(folder, data, tmp_path / "sampled", exemplar_sets=2, samples=2, protocol="sampled")
    assert exact["p_greedy"].to_list() == sampled["p_greedy"].to_list()
    assert exact["model_answer"].to_list() == sampled["model_answer"].to_list()


@pytest.mark.parametrize("form", ["NFD", "NFC"])
def test_a_gold_counts_in_either_spelling_of_its_accents(folder: Path, tmp_path: Path, form: str) -> None:
    """Vietnamese accents, Korean syllables, Hindi dots: taught in one form, and in another in the file."""
    scripts = ("vietnamese", "korean", "hindi", "arabic")
    facts = [fact for fact in rows() if fact["relation"] in scripts and fact["split"] == "taught"]
    exemplars = write_jsonl(tmp_path / "dev.jsonl", [fact for fact in rows() if fact["split"] == "dev"])
    as_taught = audited(folder, write_jsonl(tmp_path / "a.jsonl", facts), tmp_path / "a", exemplars=exemplars)
    other = [{**fact, "answer": unicodedata.normalize(form, fact["answer"])} for fact in facts]
    changed = [old["answer"] != new["answer"] for old, new in zip(facts, other, strict=True)]
    assert any(changed) is (form == "NFD")
    found = audited(folder, write_jsonl(tmp_path / "b.jsonl", other), tmp_path / "b", exemplars=exemplars)
    assert found["category"].to_list() == ["HighlyKnown"] * len(facts) == as_taught["category"].to_list()
    assert found["p_sampled"].to_list() == pytest.approx(as_taught["p_sampled"].to_list(), abs=1e-6)
    assert found["answer"].to_list() == [fact["answer"] for fact in other], "the file's own spelling is kept"
