import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from knowlm.corpus import Corpus, CorpusWriter, merge_corpora, read_counts, write_counts

SETTINGS = {"vocab_size": 1000, "tokenizer_sha256": "x", "seq_length": 8, "bos": 1, "eos": 2}


def write(prefix, samples, **settings):
    with CorpusWriter(prefix, SETTINGS | settings) as corpus:
        for sample in samples:
            corpus.add(np.array(sample), [len(sample)])
    return str(prefix)


def test_a_corpus_gives_back_its_samples(tmp_path):
    corpus = Corpus(write(tmp_path / "a", [[1, 5, 6], [7, 8, 2], [9]]))
    assert [corpus[i].tolist() for i in range(len(corpus))] == [[1, 5, 6], [7, 8, 2], [9]]
    assert corpus.type_counts == [3]


def test_a_corpus_of_2023_loads(tmp_path):
    # written as the formats describe them, by another path than ours
    np.array([1, 5, 6, 7, 8, 2], "<u2").tofile(tmp_path / "old.bin")
    with open(tmp_path / "old.idx", "wb") as index:
        np.array([0, 4], "<u8").tofile(index)
        np.array([4, 2], "<u2").tofile(index)
    torch.save([1, 1], tmp_path / "old.dis")
    corpus = Corpus(tmp_path / "old")
    assert corpus[0].tolist() == [1, 5, 6, 7]
    assert corpus[1].tolist() == [8, 2]
    assert corpus.type_counts == [1, 1]


def test_our_files_are_laid_out_as_in_2023(tmp_path):
    prefix = write(tmp_path / "a", [[1, 5, 2], [1, 6], [7, 2], [8]])
    assert np.fromfile(f"{prefix}.bin", "<u2").tolist() == [1, 5, 2, 1, 6, 7, 2, 8]
    index = (tmp_path / "a.idx").read_bytes()
    assert np.frombuffer(index[:32], "<u8").tolist() == [0, 3, 5, 7]
    assert np.frombuffer(index[32:], "<u2").tolist() == [3, 2, 2, 1]
    assert torch.load(f"{prefix}.dis", weights_only=True) == [4]
    assert torch.load(f"{prefix}.tmp", weights_only=True) == [1, 1, 1, 1]


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path):
    corpus = Corpus(write(tmp_path / "a", [[1, 65_536, 2]], vocab_size=65_537))
    assert corpus[0].tolist() == [1, 65_536, 2]


def test_merging_groups_samples_by_type(tmp_path):
    prefixes = [write(tmp_path / name, [[1, i, 2]]) for i, name in enumerate("abc", 10)]
    merged = merge_corpora(prefixes, [1, 0, 1], str(tmp_path / "all"))
    assert [merged[i].tolist()[1] for i in range(3)] == [11, 10, 12]
    assert merged.type_counts == [1, 2]
    assert read_counts(tmp_path / "all.tmp") == [0, 0, 0, 3]


def test_corpora_of_two_tokenizers_do_not_merge(tmp_path):
    prefixes = [write(tmp_path / "a", [[1]]), write(tmp_path / "b", [[1]], tokenizer_sha256="y")]
    with pytest.raises(ValueError, match="another tokenizer"):
        merge_corpora(prefixes, [0, 0], str(tmp_path / "all"))


@pytest.mark.parametrize(("suffix", "message"), [(".bin", "its index says"), (".idx", "multiple of 10")])
def test_a_truncated_file_is_named(tmp_path, suffix, message):
    prefix = write(tmp_path / "a", [[1, 5, 6], [7, 8, 2]])
    path = tmp_path / f"a{suffix}"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match=message) as error:
        Corpus(prefix)
    assert str(path) in str(error.value)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), CorpusWriter(tmp_path / "a", SETTINGS) as corpus:
        corpus.add(np.array([1, 2]), [2])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_the_kill_cut_off_is_taken_up_to_its_last_whole_line(tmp_path):
    for number, error in ((5, KeyboardInterrupt), (6, KeyboardInterrupt), (7, None)):
        with pytest.raises(error) if error else nullcontext(), CorpusWriter(tmp_path / "a", SETTINGS) as corpus:
            assert corpus.progress == [{"at": past} for past in range(5, number)]
            corpus.add(np.array([1, number, 2]), [3])
            corpus.commit({"at": number})
            corpus.add(np.array([1, 99, 2]), [3])
            if error:
                raise error
        if error:
            with (tmp_path / "a.journal").open("a") as journal:
                journal.write('{"progress": {"at"')
    assert [ids.tolist()[1] for ids in map(Corpus(tmp_path / "a").__getitem__, range(4))] == [5, 6, 7, 99]


def test_other_settings_start_over(tmp_path):
    for seq_length, error in ((8, KeyboardInterrupt), (9, None)):
        settings = SETTINGS | {"seq_length": seq_length}
        with pytest.raises(error) if error else nullcontext(), CorpusWriter(tmp_path / "a", settings) as corpus:
            assert corpus.progress == []
            corpus.add(np.array([1, seq_length, 2]), [3])
            corpus.commit({})
            if error:
                raise error
    assert [ids.tolist() for ids in [Corpus(tmp_path / "a")[0]]] == [[1, 9, 2]]
    assert len(Corpus(tmp_path / "a")) == 1


def test_counts_that_hold_code_are_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    torch.save(Evil(), tmp_path / "x.dis")
    with pytest.raises(ValueError, match="only a list of numbers"):
        read_counts(tmp_path / "x.dis")


def test_counts_come_back(tmp_path):
    write_counts(tmp_path / "x.dis", [3, 70_000])
    assert read_counts(tmp_path / "x.dis") == [3, 70_000]
    torch.save([4, 5], tmp_path / "y.dis")
    assert read_counts(tmp_path / "y.dis") == [4, 5]


def test_the_sidecar_names_tokenizer_and_settings(tmp_path):
    write(tmp_path / "a", [[1, 2]])
    sidecar = json.loads((tmp_path / "a.json").read_text())
    assert sidecar["tokenizer_sha256"] == "x"
    assert sidecar["num_tokens"] == 2
