"""Files of texts: what is read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reader_files import SHARED_DATA, allocating_at_most
from refusals import raises

from seamfast.data import CleanSet
from seamfast.data.readers import load, read_texts
from seamfast.data.readers import texts as module
from seamfast.errors import DataFileError, InputError


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "good one\t1\nbad one\t0\n"),
        ("a.TSV", "good one\t1\nbad one\t0"),
        ("a.tsv", "sentence \t label\r\n good one \t 1\r\nbad one\t 0\r\n"),
        ("a.tsv", "id\tLABEL\ttext\n7\t1\tgood one\n8\t0\tbad one\n"),
        ("a.csv", "good one,1\nbad one,0\n"),
        ("a.csv", 'label,text\n1,"good one"\n0,"bad one"\n'),
        ("a.csv", b"\xef\xbb\xbftext,labels\ngood one,1\nbad one,0\n"),
        ("a.jsonl", '{"text": "good one", "label": 1, "id": null}\n{"sentence": "bad one", "labels": "0"}\n'),
    ],
)
def test_forms_of_one_set(tmp_path, name, content):
    data = read_texts(write(tmp_path, name, content))
    assert (data.texts, data.labels.tolist(), data.class_names) == (("good one", "bad one"), [1, 0], None)


def test_quotes_and_line_ends(tmp_path):
    quoted = read_texts(write(tmp_path, "a.csv", '"a, ""b""\r\nc",0\r\n"d\u2028e",1\r\n'))
    assert quoted.texts == ('a, "b"\nc', "d\u2028e")
    plain = read_texts(write(tmp_path, "a.tsv", 'a, "b\t0\n"c""\t1\n'))
    assert plain.texts == ('a, "b', '"c""')


def test_labels_by_class_names(tmp_path):
    path = write(tmp_path, "a.tsv", "a\tpos\nb\tneg\n")
    data = read_texts(path, class_names=["neg", "pos"])
    assert (data.labels.tolist(), data.class_names) == ([1, 0], ("neg", "pos"))
    numbers = write(tmp_path, "b.tsv", "a\t2\nb\t1\n")
    assert read_texts(numbers, class_names=["1", "2"]).labels.tolist() == [1, 0]  # all listed
    assert read_texts(numbers, class_names=["1", "one", "two"]).labels.tolist() == [2, 1]


def bad(name: str, content: str | bytes, message: str, **options) -> pytest.param:
    return pytest.param(name, content, message, options, id=message[:50])


WORDS = "an integer, or class_names that list the labels in the order of the model's logits"


@pytest.mark.parametrize(
    ("name", "content", "message", "options"),
    [
        bad("a.tsv", "", "a.tsv: holds no texts; expected at least one of each of two classes"),
        bad("a.tsv", "text\tlabel\n", "a.tsv: holds no texts; expected at least one of each of two classes"),
        bad("a.tsv", "a\t0\nb\n", "a.tsv: line 2 has 1 column; expected 2"),
        bad("a.tsv", "a\t0\nb\tc\t1\n", "a.tsv: line 2 has 3 columns; expected 2"),
        bad("a.tsv", "a\t0\n\nb\t1\n", "a.tsv: line 2 has 1 column; expected 2"),
        bad("a.tsv", "x\ty\tz\na\t0\tb\n", "a.tsv: line 1 has 3 columns; expected 2"),
        bad("a.csv", 'a,0\n"b\nc",1\nd\n', "a.csv: line 4 has 1 column; expected 2"),
        bad("a.tsv", "a\t0\n \t1\n", "a.tsv: line 2: the text is empty; expected text"),
        bad("a.tsv", "a\t1\nb\t1\n", "a.tsv: every label is '1'; expected at least two classes"),
        bad("a.jsonl", '{"text": "a", "label": 1}', "a.jsonl: every label is 1; expected at least two classes"),
        bad("a.tsv", "a\t0\nb\tpos\n", f"a.tsv: line 2: the label is 'pos'; expected {WORDS}"),
        bad("a.tsv", "a\t0\nb\t\n", f"a.tsv: line 2: the label is ''; expected {WORDS}"),
        bad("a.tsv", "a\t0\nb\t0.0\n", f"a.tsv: line 2: the label is '0.0'; expected {WORDS}"),
        bad("a.tsv", "a\t0\nb\t\u0663\n", f"a.tsv: line 2: the label is '\u0663'; expected {WORDS}"),
        bad("a.tsv", "a\t0\nb\t-1\n", "a.tsv: line 2: the label is '-1'; expected an integer in [0, 1048576)"),
        bad(
            "a.tsv", "a\t0\nb\t1048576\n", "a.tsv: line 2: the label is '1048576'; expected an integer in [0, 1048576)"
        ),
        bad(
            "a.tsv",
            "a\tpos\nb\tmeh\nc\tneg\n",
            "a.tsv: line 2: the label is 'meh'; expected one of class_names: neg, pos",
            class_names=["neg", "pos"],
        ),
        bad(
            "a.tsv",
            "a\t0\nb\t2\n",
            "a.tsv: line 2: the label is '2'; expected an integer in [0, 2)",
            class_names=["neg", "pos"],
        ),
        bad("a.tsv", "a\t0\nb\0\t1\n", "a.tsv: line 2 holds a NUL byte; expected text in UTF-8"),
        bad("a.tsv", b"a\t0\nb\xf0\t1\n", "a.tsv: line 2 is not UTF-8 (byte 0xF0 in column 2); expected UTF-8"),
        bad("a.tsv", "a\t0\n".encode("utf-16"), "a.tsv: line 1 holds a NUL byte; expected text in UTF-8"),
        bad(
            "a.tsv",
            "text\tsentence\tlabel\n",
            "a.tsv: line 1 names the columns text, sentence, label; expected one of text or sentence, and one of label "
            "or labels",
        ),
        bad(
            "a.tsv",
            "review\tlabel\n",
            "a.tsv: line 1 names the columns review, label; expected one of text or sentence, and one of label or "
            "labels",
        ),
        bad("a.csv", 'a,0\n"b,1\nc,2\n', "a.csv: line 2 is not CSV (unexpected end of data)"),
        bad("a.csv", 'a,0\n"b"c,1\n', "a.csv: line 2 is not CSV (',' expected after '\"')"),
        bad(
            "a.jsonl",
            '{"text": "a", "label": 0}\n\n',
            "a.jsonl: line 2 is not strict JSON: Expecting value: line 1 column 1 (char 0)",
        ),
        bad("a.jsonl", '["a", 0]', "a.jsonl: line 1 holds ['a', 0]; expected an object"),
        bad("a.jsonl", '{"text": "a"}', "a.jsonl: line 1 holds text; expected one of label or labels"),
        bad("a.jsonl", "{}", "a.jsonl: line 1 holds no keys; expected one of text or sentence"),
        bad("a.jsonl", '{"text": 1, "label": 0}', "a.jsonl: line 1: the text is 1; expected a string"),
        bad(
            "a.jsonl",
            '{"text": "a", "label": true}',
            "a.jsonl: line 1: the label is True; expected an integer or a string",
        ),
        bad(
            "a.jsonl",
            '{"text": "a", "label": 0.5}',
            "a.jsonl: line 1: the label is 0.5; expected an integer or a string",
        ),
        bad(
            "a.jsonl",
            '{"text": "a", "text": "b", "label": 0}',
            "a.jsonl: line 1 is not strict JSON: it holds a key twice",
        ),
        bad("a.jsonl", "[" * 100_000, "a.jsonl: line 1 is not strict JSON: it is nested too deeply"),
        bad("a.tsv", "a\t0\nb\t1\n", "a.tsv: would take 8 bytes; the limit is max_bytes=7", max_bytes=7),
    ],
)
def test_refusals(tmp_path, monkeypatch, name, content, message, options):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, name, content)
    with raises(DataFileError, message):
        read_texts(name, **options)


def test_long_lines_texts_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "line.tsv", b"a\t0\n" + b"b" * (1 << 25))
    message = "line.tsv: line 2 is longer than 1,048,576 bytes; expected shorter lines"
    with allocating_at_most(6 << 20), raises(DataFileError, message):
        read_texts("line.tsv")
    write(tmp_path, "text.tsv", b"a\t0\n" + b"b" * 131_073 + b"\t1\n")
    with raises(DataFileError, "text.tsv: line 2: the text has 131,073 characters; expected at most 131,072"):
        read_texts("text.tsv")
    write(tmp_path, "field.csv", b'a,0\n"' + b"b\n" * (1 << 20))
    with raises(DataFileError, "field.csv: line 2 is not CSV (field larger than field limit (131072))"):
        read_texts("field.csv")
    monkeypatch.setattr(module, "MAX_LINES", 3)
    write(tmp_path, "rows.tsv", "a\t0\n" * 4)
    with raises(DataFileError, "rows.tsv: has more than 3 lines; expected fewer texts"):
        read_texts("rows.tsv")


def test_memory_of_texts_is_limited_and_not_only_the_size_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "a.tsv", "ab\t0\n" * 10_000)  # 50 kB, and some 50 bytes more for each str
    with pytest.raises(DataFileError, match=r"a\.tsv: would take [\d,]+ bytes; the limit is max_bytes=100,000"):
        read_texts("a.tsv", max_bytes=100_000)
    assert path.stat().st_size < 100_000


def test_what_is_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises(DataFileError, "a.tsv: no such file; looked for a file of texts"):
        read_texts("a.tsv")
    (tmp_path / "b.tsv").mkdir()
    with raises(DataFileError, "b.tsv: is not a regular file; looked for a file of texts"):
        read_texts("b.tsv")
    with raises(
        InputError,
        "source is 'a.txt'; expected one of ag-news, sst2, trec, or a file with the suffix .csv, .jsonl, .tsv",
    ):
        read_texts("a.txt")


# The published sets.


@pytest.fixture
def root(tmp_path):
    for name in ("sst2", "ag-news", "trec"):
        (tmp_path / "text" / name).mkdir(parents=True)
    write(tmp_path, "text/sst2/train.tsv", "good\t1\nbad\t0\n")
    write(tmp_path, "text/sst2/dev.tsv", "bad\t0\ngood\t1\n")
    write(tmp_path, "text/ag-news/test.tsv", 'sentence \t label\nsecond\\team "of . \t 3\nb \t 0\n')
    write(tmp_path, "text/trec/train.txt", "0 What is a pok\u00e9mon ?\n5 How far ?\n".encode("iso-8859-1"))
    write(tmp_path, "text/trec/test.txt", "0 What is a pok\u00e9mon ?\n5 How far ?\n")
    return tmp_path


def test_published_sets(root):
    for place in (root, root / "text", root / "text" / "sst2"):
        data = read_texts("sst2", root=place)
        assert (data.texts, data.labels.tolist()) == (("good", "bad"), [1, 0])
        assert data.class_names == ("negative", "positive")
    assert read_texts("sst2", root=root, split="dev").texts == ("bad", "good")
    news = read_texts("ag-news", root=root, split="test")
    assert (news.texts, news.labels.tolist()) == (('second\\team "of .', "b"), [3, 0])
    assert news.class_names == ("World", "Sports", "Business", "Sci/Tech")
    for split in ("train", "test"):
        trec = read_texts("trec", root=root, split=split)
        assert (trec.texts, trec.labels.tolist()) == (("What is a pok\u00e9mon ?", "How far ?"), [0, 5])
        assert trec.class_names is not None
        assert len(trec.class_names) == 6


def test_published_sets_that_are_not_there(root, monkeypatch):
    monkeypatch.chdir(root)
    with raises(InputError, "read_texts('sst2') needs root=, the folder that holds its files"):
        read_texts("sst2")
    with raises(DataFileError, "none: no such folder; looked for train.tsv, in text/sst2, sst2 or ."):
        read_texts("sst2", root="none")
    with raises(DataFileError, "text: no ag-news train file; looked for train.tsv, in text/ag-news, ag-news or ."):
        read_texts("ag-news", root="text")
    with raises(InputError, "split is 'dev'; expected one of train, test of trec"):
        read_texts("trec", root="text", split="dev")
    with raises(InputError, "got class_names with 'sst2', whose classes are known; expected class_names=None"):
        read_texts("sst2", root="text", class_names=["a", "b"])
    for name, value in (("root", "x"), ("split", "train")):
        message = f"got {name}='{value}' with a file of texts; expected {name}= only with one of ag-news, sst2, trec"
        with raises(InputError, message):
            read_texts("a.tsv", **{name: value})
    write(root, "text/trec/test.txt", "LOC Where ?\n")
    with raises(DataFileError, "test.txt: line 1 starts with 'LOC'; expected a label, a space"):
        read_texts("trec", root=root, split="test")
    with raises(DataFileError, "test.tsv: line 2: the label is '3'; expected an integer in [0, 2)"):
        read_texts("sst2", root=root / "text" / "ag-news", split="test")


# load


def test_load_encodes(root, monkeypatch):
    calls = []
    record = classmethod(lambda cls, texts, labels, tokenizer, **options: calls.append((texts, tokenizer, options)))
    monkeypatch.setattr(CleanSet, "from_texts", record, raising=False)
    load("sst2", root=root, split="dev", tokenizer="tokenizer", max_length=9)
    names = {"num_classes": 2, "class_names": ("negative", "positive")}
    assert calls.pop() == (("bad", "good"), "tokenizer", {"max_length": 9, **names})
    path = write(root, "a.jsonl", "".join(json.dumps({"text": t, "label": t}) + "\n" for t in "ab"))
    load(path, tokenizer="tokenizer", class_names=["b", "a"])
    assert calls.pop() == (("a", "b"), "tokenizer", {"max_length": None, "num_classes": 2, "class_names": ("b", "a")})


def test_load_names_what_it_wants(root, monkeypatch):
    monkeypatch.chdir(root)
    with raises(InputError, "load('sst2') reads texts and needs tokenizer=, the tokenizer of the model"):
        load("sst2", root=root)
    for name, value in (("tokenizer", "t"), ("max_length", 9)):
        expected = "expected it with ag-news, sst2, trec, .csv, .jsonl, .tsv"
        with raises(InputError, f"got {name}= with 'digits', which is no text; {expected}"):
            load("digits", **{name: value})
    with raises(DataFileError, "a.tsv: holds texts; expected images of (1, 8, 8) (C, H, W)"):
        load("a.tsv", tokenizer="t", sample_shape=(1, 8, 8))
    with raises(InputError, "read_texts takes no mean=; expected class_names"):
        load("a.tsv", tokenizer="t", mean=0.5)
    with raises(InputError, "read_texts('trec') needs root=, the folder that holds its files"):
        load("trec", tokenizer="t")


# The real files.


@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("sst2", "train", [3310, 3610]),
        ("sst2", "dev", [428, 444]),
        ("sst2", "test", [912, 909]),
        ("ag-news", "train", [2820, 2801, 2730, 2755]),
        ("ag-news", "dev", [2403, 2485, 2667, 2445]),
        ("ag-news", "test", [1900] * 4),
        ("trec", "train", [1162, 1250, 86, 1223, 835, 896]),
        ("trec", "test", [138, 94, 9, 65, 81, 113]),
    ],
)
def test_real_sets(name, split, counts):
    if not (SHARED_DATA / "text").exists():
        pytest.skip(f"{SHARED_DATA / 'text'} is absent")
    data = read_texts(name, root=SHARED_DATA, split=split)
    assert data.labels.bincount().tolist() == counts
    (path,) = (SHARED_DATA / "text" / name).glob(f"{split}.t*")
    lines = path.read_text(encoding="iso-8859-1" if (name, split) == ("trec", "train") else "utf-8").split("\n")
    lines = [line for line in lines[name == "ag-news" :] if line]
    if name == "trec":
        assert [f"{y} {text}" for text, y in zip(data.texts, data.labels.tolist(), strict=True)] == lines
    else:
        joined = [[text, str(y)] for text, y in zip(data.texts, data.labels.tolist(), strict=True)]
        assert joined == [[cell.strip() for cell in line.split("\t")] for line in lines]
