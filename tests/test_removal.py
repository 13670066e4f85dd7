import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm import copies
from knowlm.copies import find_copies
from knowlm.corpus import LEDGER, Corpus, CorpusWriter, merge_corpora, read_counts
from knowlm.corpus_removal import samples_of_numbers

BOS, EOS = 1, 2


def write_corpus(prefix, samples, ledger=None):
    """ledger: (source, document) of each sample."""
    settings = {"vocab_size": 60_000, "bos": BOS, "eos": EOS, "sources": [{"path": "a.txt"}, {"path": "b.txt"}]}
    with CorpusWriter(prefix, settings, ledger is not None) as writer:
        for number, sample in enumerate(samples):
            rows = None if ledger is None else np.array([(*ledger[number], 0, 9)], LEDGER)
            writer.add(np.array(sample), [len(sample)], rows)
    return Corpus(prefix)


def remove(run_script, folder, *flags):
    paths = ["--read_path_prefix", folder / "old", "--new_path_prefix", folder / "new"]
    return run_script("pretrain/preprocess.py", "--mode", "remove", *paths, *flags)


def random_samples(generator, count, size):
    return [generator.integers(3, 60_000, size).tolist() for _ in range(count)]


def longest_common_run(sample, others):
    """By trying every pair of places."""
    best = 0
    for other in others:
        for a in range(len(sample)):
            for b in range(len(other)):
                size = 0
                while a + size < len(sample) and b + size < len(other) and sample[a + size] == other[b + size]:
                    size += 1
                best = max(best, size)
    return best


TOKENS = st.lists(st.integers(3, 5), min_size=1, max_size=20)  # few kinds, so that runs repeat


@given(st.lists(TOKENS, min_size=1, max_size=4), st.lists(TOKENS, min_size=1, max_size=4), st.integers(1, 9))
def test_every_long_run_is_found_and_no_other(tmp_path_factory, removed, kept, width):
    folder = tmp_path_factory.mktemp("runs")
    old = write_corpus(folder / "old", [[BOS, *removed[0]], *removed[1:]])
    new = write_corpus(folder / "new", [[BOS, *sample, EOS] for sample in kept])
    found, sizes = find_copies(old, np.arange(len(old)), new, width)
    expected = [
        number
        for number, sample in enumerate(kept)
        if longest_common_run(sample, removed) >= width or sample in [short for short in removed if len(short) < width]
    ]
    assert found.tolist() == expected
    for number, size in zip(found.tolist(), sizes.tolist(), strict=True):
        long = [sample for sample in removed if len(sample) >= width]
        windows = {tuple(sample[i : i + width]) for sample in long for i in range(len(sample) - width + 1)}
        covered = set()
        for i in range(len(kept[number]) - width + 1):
            if tuple(kept[number][i : i + width]) in windows:
                covered |= set(range(i, i + width))
        assert size == (len(covered) or len(kept[number]))


@pytest.mark.parametrize("passes", [False, True])
def test_planted_pieces_are_found_wherever_they_lie(tmp_path, monkeypatch, passes):
    if passes:  # many parts of everything
        monkeypatch.setattr(copies, "TABLE", 100)
        monkeypatch.setattr(copies, "BLOCK", 64)
    generator = np.random.default_rng(0)
    removed, kept = random_samples(generator, 20, 200), random_samples(generator, 60, 300)
    expected = {}
    for number in range(0, 60, 2):
        size = int(generator.integers(40, 60))
        source, place = int(generator.integers(0, 200 - size)), int(generator.integers(0, 300 - size))
        kept[number][place : place + size] = removed[number % 20][source : source + size]
        if size >= 50:
            expected[number] = size
    old, new = write_corpus(tmp_path / "old", removed), write_corpus(tmp_path / "new", kept)
    found, sizes = find_copies(old, np.arange(20), new, 50)
    assert dict(zip(found.tolist(), sizes.tolist(), strict=True)) == expected and len(expected) > 5


def test_windows_of_one_hash_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "BASE", 1)  # now the order of tokens doesn't matter
    old = write_corpus(tmp_path / "old", [[3, 4, 5, 6], [6, 5, 4, 3], [5, 3, 6, 4]])
    new = write_corpus(tmp_path / "new", [[9, 5, 3, 6, 4], [3, 5, 4, 6], [9, 9, 6, 5, 4, 3]])
    assert find_copies(old, np.arange(3), new, 4)[0].tolist() == [0, 2]


def test_a_run_across_two_samples_is_none(tmp_path):
    sample = list(range(10, 30))
    old = write_corpus(tmp_path / "old", [sample])
    new = write_corpus(tmp_path / "new", [sample[:10], sample[10:]])
    assert find_copies(old, np.array([0]), new, 11)[0].tolist() == []
    assert find_copies(old, np.array([0]), new, 10)[0].tolist() == [0, 1]


def test_a_removed_document_is_gone_and_all_else_is_as_it_was(run_script, tmp_path):
    generator = np.random.default_rng(0)
    a = random_samples(generator, 6, 80)
    write_corpus(tmp_path / "a", a, [(0, 1), (0, 1), (0, 2), (1, 1), (1, 1), (1, 2)])
    b = [[BOS, *sample, EOS] for sample in random_samples(generator, 3, 60)]
    write_corpus(tmp_path / "b", b, [(0, 1), (0, 1), (0, 5)])
    old = merge_corpora([str(tmp_path / "a"), str(tmp_path / "b")], [0, 1], str(tmp_path / "old"))
    result = remove(run_script, tmp_path, "--remove_documents", "a.txt:1", "b.txt:2", "--remove_samples", "2")
    assert result.returncode == 0, result.stderr
    removed = [0, 1, 2, 5, 6, 7]  # a.txt is a source of both
    kept = [number for number in range(9) if number not in removed]
    new = Corpus(tmp_path / "new")
    assert [new[i].tolist() for i in range(len(new))] == [old[i].tolist() for i in kept]
    assert [new.origin(i) for i in range(len(new))] == [old.origin(i) for i in kept]
    assert new.type_counts == [2, 1] and read_counts(tmp_path / "new.tmp") == [0, 0, 2, 1]
    assert "removed 6 samples, 444 tokens; no run of 50 tokens of them is left" in result.stdout.splitlines()[-1]
    assert not list(tmp_path.glob("*unfinished*")) and not list(tmp_path.glob("*partial*"))


def test_nothing_is_written_while_a_copy_is_left(run_script, tmp_path):
    samples = random_samples(np.random.default_rng(0), 5, 100)
    samples[3][20:80] = samples[0][5:65]
    write_corpus(tmp_path / "old", samples, [(0, n) for n in range(1, 6)])
    result = remove(run_script, tmp_path, "--remove_documents", "a.txt:1")
    assert result.returncode == 1
    assert "not written, as 1 other samples hold 60 tokens of removed ones: 3 (a.txt:4)" in result.stderr
    assert "--remove_copies" in result.stderr and not list(tmp_path.glob("new*"))
    assert remove(run_script, tmp_path, "--remove_samples", "0", "--proof_tokens", 61).returncode == 0
    result = remove(run_script, tmp_path, "--remove_samples", "0", "--remove_copies")
    assert result.returncode == 0, result.stderr
    assert "removed 2 samples (1 of them for holding text of the others)" in result.stdout
    assert len(Corpus(tmp_path / "new")) == 3


def test_a_short_copy_is_found_as_a_whole_sample(run_script, tmp_path):
    samples = [[BOS, 7, 8, 9, EOS], [BOS, 7, 8, 9], [6, 7, 8, 9, 10], [5, 5]]
    write_corpus(tmp_path / "old", samples)
    result = remove(run_script, tmp_path, "--remove_samples", "0")
    assert "1 other samples hold 3 tokens of removed ones: 1;" in result.stderr
    assert remove(run_script, tmp_path, "--remove_samples", "0-1").returncode == 0


def test_no_text_of_a_removed_document_is_in_a_neighbours_sample(run_script, tiny_llama, tmp_path):
    """The overlap of packing stays within a document."""
    lines = [" ".join(f"In {year}, {person} wrote {year % 7}. " for year in range(1900, 1930)) for person in "ABC"]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    flags = ["--file_path", tmp_path / "a.txt", "--tokenizer_path", tiny_llama, "--do_split_sentences"]
    flags += ["--seq_length", 64, "--save_path", tmp_path, "--save_prefix", "old"]
    assert run_script("pretrain/preprocess.py", "--mode", "write", *flags).returncode == 0
    result = remove(run_script, tmp_path, "--remove_documents", f"{tmp_path / 'a.txt'}:2", "--proof_tokens", 20)
    assert result.returncode == 0, result.stderr
    new = Corpus(tmp_path / "new")
    assert {new.origin(i)[1] for i in range(len(new))} == {1, 3} and len(new) > 10


def test_numbers_come_from_a_file(tmp_path):
    corpus = write_corpus(tmp_path / "old", [[5, 6]] * 9)
    (tmp_path / "list").write_text("3-5\n\n8\n")
    assert samples_of_numbers(corpus, ["0", f"@{tmp_path / 'list'}"], "--remove_samples").tolist() == [0, 3, 4, 5, 8]
    (tmp_path / "list").write_text("3-5\n5-4\n")
    with pytest.raises(ValueError, match=r"--remove_samples 5-4: a number or a range"):
        samples_of_numbers(corpus, [f"@{tmp_path / 'list'}"], "--remove_samples")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--remove_samples", "99"], "--remove_samples 99: {folder}/old has samples 0 to 1, not 99"),
        (["--remove_samples", "a-b"], "a number or a range"),
        (["--remove_samples", "@none"], "none: no such file"),
        (["--remove_samples", "0-1"], "{folder}/new: no sample would be left"),
        (["--remove_documents", "other.jsonl:1"], "the corpus was made of a.txt, b.txt"),
        (["--remove_documents", "a.txt:99"], "no sample of"),
        (["--remove_documents", "a.txt"], "the corpus was made of"),
    ],
)
def test_what_can_not_be_removed_is_told(run_script, tmp_path, flags, message):
    write_corpus(tmp_path / "old", [[4, 5], [6, 7]], [(0, 1), (0, 2)])
    result = remove(run_script, tmp_path, *flags)
    assert result.returncode == 1 and message.format(folder=tmp_path) in result.stderr
    assert "Traceback" not in result.stderr and not list(tmp_path.glob("new*"))


def test_documents_need_a_ledger(run_script, tmp_path):
    write_corpus(tmp_path / "old", [[4, 5], [6, 7]])
    result = remove(run_script, tmp_path, "--remove_documents", "a.txt:1")
    assert result.returncode == 1 and "has no ledger" in result.stderr


def test_the_sidecar_tells_what_was_removed(run_script, tmp_path):
    write_corpus(tmp_path / "old", [[4, 5], [6, 7]])
    assert remove(run_script, tmp_path, "--remove_samples", "0").returncode == 0
    settings = json.loads((tmp_path / "new.json").read_text())
    assert settings["removed"] == {"from": str(tmp_path / "old"), "samples": 1} and settings["num_tokens"] == 2
