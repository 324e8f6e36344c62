"""``Texts``: what it holds, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import raises

from seamfast.data import CleanSet, Texts
from seamfast.errors import DTypeError, InputError, ShapeError


def test_holds_texts_and_labels_in_one_form():
    data = Texts(["a", "b", "c"], np.array([1, 0, 1], np.int32))
    assert (data.texts, data.labels.dtype, data.labels.tolist()) == (("a", "b", "c"), torch.int64, [1, 0, 1])
    assert (len(data), data.n_labelled_classes, data.class_names) == (3, 2, None)
    assert repr(data) == "Texts(3 texts, 2 classes present)"
    with pytest.raises(AttributeError):
        data.texts = ()


def test_strings_of_class_names_become_positions():
    data = Texts(["a", "b"], ["pos", "neg"], ["neg", "pos"])
    assert (data.labels.tolist(), data.class_names) == ([1, 0], ("neg", "pos"))
    assert Texts(["a", "b"], ["2", "1"], ["1", "2"]).labels.tolist() == [1, 0]


def test_subset_keeps_order_and_names():
    part = Texts(["a", "b", "c"], [0, 1, 2], ["x", "y", "z"]).subset(torch.tensor([2, 0]))
    assert (part.texts, part.labels.tolist(), part.class_names) == (("c", "a"), [2, 0], ("x", "y", "z"))
    assert len(part.subset([])) == 0


def test_encoded_calls_clean_set(monkeypatch):
    calls = []
    record = classmethod(lambda cls, *args, **options: calls.append((args, options)))
    monkeypatch.setattr(CleanSet, "from_texts", record, raising=False)
    data = Texts(["a", "b"], [1, 0], ["neg", "pos"])
    data.encoded("tokenizer", 7)
    expected = {"max_length": 7, "num_classes": 2, "class_names": ("neg", "pos")}
    assert calls == [((data.texts, data.labels, "tokenizer"), expected)]
    Texts(["a"], [1]).encoded("tokenizer")
    assert calls[1][1] == {"max_length": None, "num_classes": None, "class_names": None}


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (InputError, "texts is a str; expected a sequence of one str for each sample", ("ab", [0, 1])),
        (InputError, "texts[1] is empty; expected text", (["a", ""], [0, 1])),
        (InputError, "texts[0] is empty; expected text", ([" \t\n", "a"], [0, 1])),
        (InputError, "texts[1] is a float; expected a str", (["a", float("nan")], [0, 1])),
        (InputError, "texts[0] holds half of a surrogate pair; expected Unicode text", (["\ud800", "b"], [0, 1])),
        (
            ShapeError,
            "texts has 2 samples and labels 1; expected the same number of samples in both",
            (["a", "b"], [0]),
        ),
        (DTypeError, "labels has dtype float32; expected an integer dtype", (["a"], torch.tensor([0.5]))),
        (InputError, "labels hold -1; expected integers from 0", (["a"], [-1])),
        (InputError, "labels hold 2; expected integers in [0, 2) for class_names", (["a"], [2], ["x", "y"])),
        (
            InputError,
            "labels hold 'pos'; expected integers, or class_names that list them in the order of the model's logits",
            (["a", "b"], ["pos", "neg"]),
        ),
        (
            InputError,
            "labels hold 'meh'; expected names of class_names: ('neg', 'pos')",
            (["a", "b"], ["pos", "meh"], ["neg", "pos"]),
        ),
        (InputError, "class_names is 'ab'; expected one string for each class", (["a"], [0], "ab")),
        (InputError, "class_names is ['x', 'x']; expected a different name for each class", (["a"], [0], ["x", "x"])),
    ],
)
def test_refusals(kind, message, arguments):
    with raises(kind, message):
        Texts(*arguments)
