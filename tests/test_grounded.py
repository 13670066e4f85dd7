"""Decoding under a grammar of text and schema, with random models: what must hold, holds without any luck."""

import json
import random
import string

import pytest

from knowlm.extraction.forms import NOTHING, tuple_field, write_answer
from knowlm.extraction.grammar import LONGEST_SPAN, chunk_ends, grammar, read_items
from knowlm.extraction.grounded import extract, wrapped_tokenizer
from knowlm.extraction.parsing import parse
from knowlm.extraction.windows import split
from knowlm.generation import GenerationSettings
from knowlm.models import load_for_generation
from knowlm.prompts import Prompter

TEXT = (
    'Washington, D.C. lies (more or less)\n(east) of "Paris" \\ France,place) 😀 and\x01\x00 北京,place is "x/y". '
    "Marie Curie was born in Warsaw, Poland. x,place a,b,country,c)"
)
LABELS = ["place", 'per"son', "地点/\\x", "a,place", "😀 of"]
EVENTS = [
    {"type": "birth", "roles": ["who", "where"]},
    {"type": "trip", "roles": ["when"]},
    {"type": "rain", "roles": []},
]


def entities(*pairs):
    return [{"text": text, "type": kind} for text, kind in pairs]


def triples(*parts):
    return [{"head": head, "relation": relation, "tail": tail} for head, relation, tail in parts]


def event(kind, trigger, *arguments):
    return {"type": kind, "trigger": trigger, "arguments": [{"text": text, "role": role} for text, role in arguments]}


def talkative(model, tokenizer):
    """Random weights that find something: what made "NAN" likelier than "(" is turned round."""
    import torch

    nothing, something = (tokenizer.convert_tokens_to_ids(token) for token in "N(")
    with torch.no_grad():
        model.lm_head.weight[[nothing, something]] = model.lm_head.weight[[something, nothing]]
    return model, tokenizer


@pytest.fixture(scope="module")
def loaded(tiny_llama):
    return talkative(*load_for_generation(str(tiny_llama)))


@pytest.fixture(scope="module")
def loaded_sentencepiece(tiny_llama, sentencepiece_model, tmp_path_factory):
    """The same random weights behind LLaMA's kind of tokenizer: SentencePiece with byte fallback."""
    import shutil

    folder = tmp_path_factory.mktemp("sentencepiece_llama")
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_llama / name, folder / name)
    shutil.copyfile(sentencepiece_model, folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return talkative(*load_for_generation(str(folder)))


def is_allowed(tokenizer, task, schema, answer, text=TEXT) -> bool:
    from llguidance import LLMatcher, grammar_from

    constraint = wrapped_tokenizer(tokenizer, 1)
    matcher = LLMatcher(constraint, grammar_from("grammar", grammar(task, schema, text)))
    assert not matcher.is_error(), matcher.get_error()
    tokens = constraint.tokenize_bytes(answer.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("task", "schema", "items"),
    [
        ("NER", LABELS, []),
        ("NER", LABELS, entities(("Washington, D.C.", "place"), ("Paris", 'per"son'), ("😀", "地点/\\x"))),
        ("NER", LABELS, entities(('"Paris" \\', "😀 of"), ("and\x01\x00 北", "a,place"), ("less)\n(east", "place"))),
        ("NER", LABELS, entities(("x,place", "place"), ("France,place)", "place"), ("place is", "place"))),
        ("NER", ["a", "a,b", "NAN"], entities(("Paris", "a,b"), ("Paris", "a"), ("Paris", "NAN"))),
        ("RE", ["place", "in"], triples(("x", "place", "(more or less)"), ("Washington, D.C.", "in", "more or less)"))),
        ("RE", ["place", "in"], triples(("x", "place", "place is"), ("less)\n(east", "in", "less)"))),
        ("EE", EVENTS, [event("birth", "born", ("Marie Curie", "who"), ("Warsaw, Poland", "where"))]),
        ("EE", EVENTS, [event("trip", "lies"), event("rain", "of"), event("trip", "D.C.", ("[", "when"))][:2]),
    ],
)
def test_answers_of_training_are_in_the_grammar_and_read_back(tiny_tokenizer, task, schema, items):
    answer = write_answer(task, items, "tuple")
    assert is_allowed(tiny_tokenizer, task, schema, answer)
    assert [part.item for part in read_items(task, schema, answer)] == items


@pytest.mark.parametrize(
    ("task", "schema", "answer"),
    [
        ("NER", LABELS, "(London,place)"),  # not in the text
        ("NER", LABELS, "(Paris,country)"),  # not in the schema
        ("NER", LABELS, "(,place)"),
        ("NER", LABELS, "( of,place)"),
        ("NER", LABELS, "(Washing,place)"),  # not a word
        ("NER", LABELS, "(Washington, D.C.,place)"),  # two readings
        ("NER", LABELS, "((more or less),place)"),
        ("NER", LABELS, "(Paris,a,place)"),
        ("NER", LABELS, '("London",place)'),
        ("NER", LABELS, '("Paris, France",place)'),
        ("NER", LABELS, "(Paris,place)\n"),
        ("NER", LABELS, "(Paris,place"),
        ("NER", LABELS, "(Paris,place)" + "\n(Paris,place)" * 64),  # no end
        ("NER", LABELS, ""),
        ("RE", ["place", "in"], "(Paris,in,London)"),
        ("RE", ["place", "in"], "(x,place,place,a)"),
        ("RE", ["place", "in"], "(x,in,less)\n(east)"),
        ("EE", EVENTS, "(born,birth,[(Marie Curie,when)])"),  # a role of another type
        ("EE", EVENTS, "(born,rain,[(Marie Curie,who)])"),
        ("EE", EVENTS, "(born,birth)"),
    ],
)
def test_other_answers_are_not_in_the_grammar(tiny_tokenizer, task, schema, answer):
    assert not is_allowed(tiny_tokenizer, task, schema, answer)


@pytest.mark.parametrize("text", ["", " \n\t\u3000\x1c"])
def test_of_an_empty_text_nothing_can_be_said(tiny_tokenizer, text):
    assert is_allowed(tiny_tokenizer, "NER", ["place"], NOTHING, text)
    assert not is_allowed(tiny_tokenizer, "NER", ["place"], "( ,place)", text)


def test_the_longest_span_is_bounded(tiny_tokenizer):
    for mark in ("", '"'):
        text = f"{'字' * 300}{mark}"
        for length, fits in ((LONGEST_SPAN, True), (LONGEST_SPAN + 1, False)):
            name = text[-length:]
            assert is_allowed(tiny_tokenizer, "NER", ["x"], f"({tuple_field(name)},x)", text) is fits


def test_every_span_can_be_written_as_in_training_and_no_other_way_without_quotes(tiny_tokenizer):
    from llguidance import LLMatcher, grammar_from

    generator = random.Random(7)
    constraint = wrapped_tokenizer(tiny_tokenizer, 1)
    for _ in range(25):
        text = random_text(generator).replace("s>", "")[:60]  # an end token is none of a text
        ends = chunk_ends(text)
        matcher = LLMatcher(constraint, grammar_from("grammar", grammar("NER", ["x"], text)))
        assert not matcher.is_error(), matcher.get_error()
        for _ in range(15):
            start, stop = sorted(generator.choices(ends, k=2))
            name = text[start:stop]
            written = tuple_field(name)
            for field in {name, written, json.dumps(name, ensure_ascii=False)}:
                tokens = constraint.tokenize_bytes(f"({field},x)".encode())
                allowed = matcher.deep_copy().try_consume_tokens(tokens) == len(tokens)
                is_right = name.strip() == name != "" and (field == written or field.startswith('"'))
                if not name.startswith('"') or field != name:  # "a" with its quotes may be a, too
                    assert allowed == is_right, (text, field)
                if allowed:
                    (part,) = read_items("NER", ["x"], f"({field},x)")
                    assert part.item["text"] in text and (part.item["text"] == name or field == name)


def test_of_an_answer_that_is_cut_off_only_whole_items_are_read():
    assert [part.item for part in read_items("NER", ["x"], "(a,x)\n(b,")] == entities(("a", "x"))
    assert [part.item for part in read_items("NER", ["x"], '(a,x)\n("b,x)')] == entities(("a", "x"))
    assert read_items("RE", ["r"], "(a,r,b (c)") == []  # the tail may go on
    assert [part.item for part in read_items("RE", ["r"], "(a,r,b (c))")] == triples(("a", "r", "b (c)"))
    assert [part.item for part in read_items("RE", ["r"], "(a,r,b)\n(c,r,")] == triples(("a", "r", "b"))
    assert read_items("EE", EVENTS, "(a,birth,[(b,who),(c,wh") == []


QUESTIONS = [
    {"task": "NER", "schema": ["person", "place"], "text": TEXT},
    {"task": "NER", "schema": ["人物", "地点"], "text": "鲁迅出生于浙江省绍兴市。"},
    {"task": "RE", "schema": ["born in", "spouse"], "text": TEXT},
    {"task": "EE", "schema": EVENTS, "text": "Marie Curie was born in Warsaw, Poland."},
    {"task": "RE", "schema": ["x"], "text": ""},
]
SETTINGS = GenerationSettings(max_new_tokens=40)


def all_of(function, loaded, questions, settings=SETTINGS, **options):
    done = dict(function(*loaded, questions, Prompter(), settings, **options))
    return [done[number] for number in range(len(questions))]


def test_a_batch_extracts_as_its_texts_do_alone(loaded):
    together = all_of(extract, loaded, QUESTIONS, batch_size=5)
    alone = [all_of(extract, loaded, [question])[0] for question in QUESTIONS]
    assert [one.answer for one in together] == [one.answer for one in alone]
    assert together[4].answer == NOTHING and together[4].items == [] and together[4].is_whole


def test_a_permuted_schema_gives_the_identical_answer(loaded):
    labels = ["person", "place", "work", "event", "river", "country", "city", "plant", "person"]
    events = [{"type": kind, "roles": ["who", "where", "when"]} for kind in "abcdef"]
    for task, schema in (("NER", labels), ("RE", labels), ("EE", events)):
        permuted = [e | {"roles": e["roles"][::-1]} for e in [*schema, schema[0]]] if task == "EE" else schema
        question = {"task": task, "text": "Marie Curie was born in Warsaw."}
        one = all_of(extract, loaded, [question | {"schema": schema}])[0]
        other = all_of(extract, loaded, [question | {"schema": permuted[::-1]}])[0]
        assert one == other
        assert one.records and one.answer.count("\n") >= 1  # of several batches


def test_a_score_is_the_geometric_mean_of_the_decisions_probabilities(loaded):
    import torch
    from llguidance import LLMatcher, grammar_from

    model, tokenizer = loaded
    question = QUESTIONS[0] | {"language": "english"}
    found = all_of(extract, loaded, [question], SETTINGS.updated(max_new_tokens=400))[0]
    ask = split([question], 600, 150)[0]
    constraint = wrapped_tokenizer(tokenizer, 1)
    matcher = LLMatcher(constraint, grammar_from("grammar", grammar(ask.task, ask.schema, ask.text)))
    written = found.answer.split("\n")[0]
    prompt = [1, *tokenizer(Prompter().prompt(ask.instruction, ask.text), add_special_tokens=False).input_ids]
    total, ids = 0.0, []
    while len(constraint.decode_bytes(ids)) < len(written.encode()):  # greedy, by hand
        logits = model(torch.tensor([prompt + ids])).logits[0, -1].detach()
        allowed = torch.tensor(list(matcher.compute_logit_bias())) > 0
        logits = logits.masked_fill(~allowed, -torch.inf)
        ids.append(int(logits.argmax()))
        total += float(logits.log_softmax(0).max())
        assert matcher.consume_token(ids[-1])
    assert constraint.decode_bytes(ids).decode() == written
    assert found.items[0]["score"] == pytest.approx(torch.tensor(total / 2).exp().item(), abs=1e-4)


def test_beams_are_refused_and_so_is_a_prompt_too_long_for_the_model(loaded):
    with pytest.raises(ValueError, match="num_beams"):
        all_of(extract, loaded, QUESTIONS, SETTINGS.updated(num_beams=2))
    with pytest.raises(ValueError, match="exceed the model's 2048"):
        all_of(extract, loaded, QUESTIONS, SETTINGS.updated(max_new_tokens=2000))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "QA"}, "is one of NER"),
        ({"schema": []}, "a list like"),
        ({"schema": ["a", ""]}, "a list like"),
        ({"schema": EVENTS}, "a list like"),
        ({"task": "EE", "schema": ["a"]}, "a list like"),
        ({"text": None}, "must be a text"),
        ({"text": "\ud800"}, "half a character"),
    ],
)
def test_a_question_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        split([QUESTIONS[0] | change], 600, 150)


PIECES = (
    "Marie Curie Warsaw Washington, D.C. O'Neill U.S. naïve 3.14 23 ,person) ,born).in, ,birth,[ )\n( ]) </s> <s> NAN "
    '鲁迅 绍兴 浙江省 北京， 《狂人日记》 “引号” ，地点） 𠮷野家 ＡＢＣ 👩\u200d👩\u200d👧 😀 \\ \\n " "" \' (( ]} '
    "\x00 \x01 \x1f \x7f \u200b e\u0301 \r \ufeff"
)
SPACES = ["\n", "\t", "\u3000", " "]


def random_text(generator: random.Random) -> str:
    """English, Chinese, emoji, quotes, backslashes, controls, and what ends spans in answers."""
    pieces = PIECES.split(" ") + SPACES
    joint = generator.choice(["", " ", ""])
    if generator.random() < 0.05:
        return "".join(generator.choice(string.printable) for _ in range(generator.randrange(60)))
    return joint.join(generator.choice(pieces) for _ in range(generator.randrange(1, 40)))


def check_grounded(question: dict, found, tokenizer, settings) -> None:
    task, text = question["task"], question["text"]
    allowed = {"NER": ["person", "born).in", "地点"], "RE": ["in", "person", "b\\c"], "EE": ["birth", "trip"]}[task]
    parts = read_items(task, split([question], 600, 150)[0].schema, found.answer)
    assert (found.answer == NOTHING) == (not parts)
    assert not parts or parts[-1].stop == len(found.answer)
    assert len(tokenizer(found.answer, add_special_tokens=False).input_ids) <= 3 * settings.max_new_tokens
    for item in found.items:
        assert item["relation" if task == "RE" else "type"] in allowed and 0 < item["score"] <= 1
        texts = {"NER": [item.get("text")], "RE": [item.get("head"), item.get("tail")]}.get(task)
        texts = texts or [item["trigger"], *(argument["text"] for argument in item["arguments"])]
        assert all(span and span.strip() == span and span in text and len(span) <= LONGEST_SPAN for span in texts)
    plain = [{name: value for name, value in item.items() if name != "score"} for item in found.items]
    read = {str(item): item for item in parse(task, found.answer, question["schema"]).items}  # a repeated item once
    assert list(read.values()) == plain  # what anyone's parser reads is the same
    assert parse(task, found.answer, question["schema"]).repairs in ([], ["repeated"])
    spans = [
        span
        for record in found.records
        for span in (
            record,
            record.get("head"),
            record.get("tail"),
            record.get("trigger"),
            *record.get("arguments", []),
        )
        if span and "start" in span
    ]
    assert all(text[span["start"] : span["end"]] == span["text"] != "" for span in spans)
    assert len(found.records) >= len(found.items)


SCHEMAS = {
    "NER": ["person", "born).in", "地点"],
    "RE": ["in", "person", "b\\c"],
    "EE": [{"type": "birth", "roles": ["person", "地点"]}, {"type": "trip", "roles": ["in"]}],
}


@pytest.mark.slow
def test_a_thousand_random_texts_parse_and_end_with_verbatim_spans_at_their_offsets(loaded, loaded_sentencepiece):
    generator = random.Random(5)
    tasks = ("NER", "RE", "EE")
    settings = GenerationSettings(max_new_tokens=48)
    found_items = ended = 0
    for model, tokenizer in (loaded, loaded_sentencepiece):
        for drawn in (False, True):
            questions = [
                {"task": tasks[i % 3], "schema": SCHEMAS[tasks[i % 3]], "text": random_text(generator)}
                for i in range(250)
            ]
            how = settings.updated(do_sample=drawn, temperature=1.0, top_p=1.0, top_k=0)
            done = all_of(extract, (model, tokenizer), questions, how, batch_size=50)
            for question, found in zip(questions, done, strict=True):
                check_grounded(question, found, tokenizer, how)
                found_items += len(found.items)
                ended += found.is_whole
    assert found_items > 1000 and ended > 200


def test_free_decoding_reads_a_random_models_words(loaded):
    found = all_of(extract, loaded, QUESTIONS, free=True)
    assert all(one.records == [] and one.answer for one in found[:4])


def test_a_long_document_is_read_to_its_end_with_its_own_offsets(loaded):
    sentences = [f"In {year} Person{year} came to Town{year}." for year in range(1900, 1960)]
    text = " ".join(sentences)
    settings = SETTINGS.updated(max_new_tokens=60)
    question = {"task": "NER", "schema": ["a", "b"], "text": text}
    (whole,) = all_of(extract, loaded, [question], settings, window=150, overlap=60)
    asks = split([question], 150, 60)
    assert len(asks) >= 20 and all(text[ask.start :].startswith(ask.text) and len(ask.text) <= 150 for ask in asks)
    assert {sentence for sentence in sentences if any(sentence in ask.text for ask in asks)} == set(sentences)
    alone = all_of(extract, loaded, [question | {"text": ask.text} for ask in asks], settings, window=150, overlap=60)
    names = {(item["text"], item["type"]) for one in alone for item in one.items}
    assert names and {(item["text"], item["type"]) for item in whole.items} == names
    assert len(whole.items) == len(names)  # each once
    assert all(text[r["start"] : r["end"]] == r["text"] for r in whole.records)
    assert len({(r["start"], r["end"], r["type"]) for r in whole.records}) == len(whole.records)
    assert [r["start"] for r in whole.records] == sorted(r["start"] for r in whole.records)


def test_more_of_a_text_gives_more_of_it(loaded):
    sentences = [f"In {year} Person{year} came to Town{year}." for year in range(1900, 1940)]
    question = {"task": "RE", "schema": ["a", "b"]}
    counts = []
    for number in (10, 40):
        text = " ".join(sentences[:number])
        (found,) = all_of(extract, loaded, [question | {"text": text}], SETTINGS, window=150, overlap=40)
        counts.append(len(found.items))
        assert all(text[r[e]["start"] : r[e]["end"]] == r[e]["text"] for r in found.records for e in ("head", "tail"))
    assert counts[1] >= 3 * counts[0] > 0
