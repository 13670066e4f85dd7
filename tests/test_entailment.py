"""Facts are asked of an entailment model, as sentences; any number of processes gives the same answer."""

import json

import pytest

from knowlm.supervision.entailment import EntailmentFilter, entailment_label, hypothesis_of, premise_of
from knowlm.supervision.graph_schema import default_schema
from knowlm.supervision.pieces import Match, Piece

LABELS = {"0": "CONTRADICTION", "1": "neutral", "2": "Entailment"}


@pytest.fixture(scope="module")
def nli_model(tmp_path_factory):
    """A BERT of two small layers with random weights, and a tokenizer that knows single characters."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder = tmp_path_factory.mktemp("nli") / "model"
    folder.mkdir()
    letters = [chr(code) for code in range(33, 127)] + list("巴黎法国的首都是。，在")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.5,  # so that answers differ
        id2label={int(number): name for number, name in LABELS.items()},
        label2id={name: int(number) for number, name in LABELS.items()},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def piece_of(text, language, *facts):
    matches = []
    for head, relation, tail in facts:
        spans = [(text.index(name), text.index(name) + len(name)) for name in (head, tail)]
        matches.append(Match(head, relation, tail, *spans, {}))
    return Piece("id", "document", language, text, [], matches)


def test_facts_become_sentences_in_the_pieces_language():
    text = "It rained. France lies in Europe. Paris is its capital. It snowed."
    piece = piece_of(text, "english", ("France", "capital", "Paris"), ("France", "located_in", "Europe"))
    assert [hypothesis_of(match, piece, default_schema()) for match in piece.triples] == [
        "The capital of France is Paris.",
        "France is located in Europe.",
    ]
    assert [premise_of(match, piece) for match in piece.triples] == [
        "France lies in Europe. Paris is its capital.",
        "France lies in Europe.",
    ]
    chinese = piece_of("下雨了。巴黎在法国。下雪了。", "chinese", ("法国", "capital", "巴黎"))
    assert hypothesis_of(chinese.triples[0], chinese, default_schema()) == "法国的首都是巴黎。"
    assert premise_of(chinese.triples[0], chinese) == "巴黎在法国。"


def test_only_facts_that_are_likely_enough_stay_with_their_probability(nli_model):
    def pieces():
        return [
            piece_of(f"{name} is in Paris, and in France too. " * 9, "english", (name, "located_in", tail))
            for name in ("Louvre", "Seine", "Rome", "Ann " * 40)  # the last is cut to what the model reads
            for tail in ("Paris", "France")
        ]

    every, some = pieces(), pieces()
    assert EntailmentFilter(str(nli_model), 0.0).drop(every, default_schema()) == [{}] * 8
    known = [piece.triples[0].evidence["entailment"] for piece in every]
    assert len(set(known)) > 1 and all(0 <= probability <= 1 for probability in known)
    least = sorted(known)[4]
    dropped = EntailmentFilter(str(nli_model), least).drop(some, default_schema())
    assert [not counts for counts in dropped] == [probability >= least for probability in known]
    assert sum(counts["located_in"] for counts in dropped) == sum(not piece.triples for piece in some) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertModel"]}, "is no sequence classification model"),
        ({"id2label": {"0": "good", "1": "bad"}}, 'has no label "entailment", only good, bad'),
    ],
)
def test_another_model_is_refused_before_anything_is_made(nli_model, tmp_path, run_script, change, message):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in nli_model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((nli_model / "config.json").read_text()) | change
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    (tmp_path / "graph.tsv").write_text("Paris\tin\tFrance\n")
    paths = ("--texts", tmp_path / "graph.tsv", "--knowledge", tmp_path / "graph.tsv", "--output_dir", tmp_path / "out")
    result = run_script("finetune/kg2instructions.py", *paths, "--entailment_model", folder)
    assert result.returncode == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("out*"))


def test_the_label_is_found_in_any_case_and_a_folder_without_a_model_is_told(nli_model, tmp_path):
    assert entailment_label(nli_model) == 2
    with pytest.raises(ValueError, match=r"config.json: no such file"):
        entailment_label(tmp_path)


@pytest.mark.slow
def test_any_number_of_processes_drops_the_same_facts(nli_model, tmp_path, run_script):
    people = [f"{name}{letter}ma" for name in ("Al", "Be", "Co", "Da") for letter in "bdfgklmn"]
    rest = " They slept." * 300  # several batches, so that both processes have work
    (tmp_path / "graph.tsv").write_text("".join(f"{name}\tlives in\tParis\n" for name in people))
    (tmp_path / "texts.txt").write_text("".join(f"{name} came to Paris in spring.{rest}\n" for name in people))

    def run(output, least, workers):
        paths = ("--texts", tmp_path / "texts.txt", "--knowledge", tmp_path / "graph.tsv", "--tasks", "RE")
        flags = ("--entailment_model", nli_model, "--min_entailment", least, "--num_workers", workers)
        shared = ("--database", tmp_path / "graph.db", "--heldout", 0.5, "--empty_share", 1)
        result = run_script("finetune/kg2instructions.py", *paths, *flags, *shared, "--output_dir", tmp_path / output)
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in (tmp_path / output / "evidence.jsonl").open()]

    known = sorted(triple["entailment"] for row in run("all", 0, 1) for triple in row["triples"])
    least = known[len(known) // 2]
    kept = run("out1", least, 1)
    assert run("out2", least, 2) == kept
    for file in (tmp_path / "out1").iterdir():
        assert file.read_bytes() == (tmp_path / "out2" / file.name).read_bytes()
    report = json.loads((tmp_path / "out1/report.json").read_text())
    assert all(triple["entailment"] >= least for row in kept for triple in row["triples"])
    assert report["not_entailed"] == report["not_entailed_by_relation"].get("lives in", 0) == len(people) - len(kept)
