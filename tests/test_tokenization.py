import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowlm.tokenization import CorpusTokenizer

TEXTS = st.text(alphabet="ab .\n\t\r你好，。😀é𠮷▁<s/>", max_size=30)


@pytest.fixture(scope="module")
def tokenizer(sentencepiece_model):
    return CorpusTokenizer(sentencepiece_model)


def test_a_sentencepiece_model_is_encoded_by_the_fast_engine(tokenizer):
    assert tokenizer.engine == "gigatoken"


@given(st.lists(TEXTS, max_size=5))
def test_the_fast_engine_gives_the_ids_of_sentencepiece(tokenizer, texts):
    expected = [tokenizer.encode(text)[0] for text in texts]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
    assert [ids.tolist() for ids in tokenizer.encode_batch([text.encode() for text in texts])] == expected


@given(TEXTS)
def test_every_token_begins_where_its_character_does(tokenizer, text):
    _, characters = tokenizer.encode(text)
    (fast,) = tokenizer.encode_batch([text])
    assert tokenizer.token_starts(text.encode(), fast).tolist() == [len(text[:start].encode()) for start in characters]


@given(TEXTS)
def test_ids_decode_to_the_text(tokenizer, text):
    ids = [tokenizer.bos, *tokenizer.encode(text)[0], tokenizer.eos]
    assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_a_special_token_written_in_the_text_stays_text(tokenizer):
    ids = tokenizer.encode_batch(["a </s> b <s>"])[0].tolist()
    assert tokenizer.bos not in ids and tokenizer.eos not in ids


def test_a_tokenizer_that_the_fast_engine_does_not_know_works_too(tiny_llama):
    tokenizer = CorpusTokenizer(tiny_llama)
    (ids,) = tokenizer.encode_batch(["你好 <s> a"])
    assert tokenizer.decode(ids.tolist()) == "你好 <s> a"
    assert tokenizer.token_starts("你好 <s> a".encode(), ids)[0] == 0


def test_where_the_fast_engine_does_not_fit_sentencepiece_encodes(tmp_path):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox", "jumps over the lazy dog"] * 9),
        model_prefix=str(tmp_path / "unigram"),
        model_type="unigram",
        vocab_size=30,
        minloglevel=2,
    )
    tokenizer = CorpusTokenizer(tmp_path / "unigram.model")
    assert tokenizer.engine == "sentencepiece"
    assert tokenizer.encode_batch(["the dog"])[0].tolist() == tokenizer.encode("the dog")[0]


def test_a_file_that_is_no_tokenizer_is_told(tmp_path):
    (tmp_path / "tokenizer.model").write_text("nonsense")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        CorpusTokenizer(tmp_path / "tokenizer.model")
