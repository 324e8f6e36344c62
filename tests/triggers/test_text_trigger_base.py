"""What all kinds for text share: checks, frozen data, equality, copies, files, independence of the batch."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from seamfast.errors import DTypeError, InputError, ShapeError
from seamfast.triggers import (
    AllToAll,
    Characters,
    Insertion,
    SourceSpecific,
    Table,
    TextTrigger,
    load_triggers,
    save_triggers,
    text_battery,
)

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "  a gorgeous , witty , seductive movie .\n",
    "it never quite delivers",
    "wonderful",
    "It's NOT what I had expected at all",
    "no movement , no yuks , not much of anything .",
]
TRIGGERS = (
    Insertion.word(target=AllToAll(1)),
    Insertion.rare_words(target=SourceSpecific((1, 2), 0), n_copies=3),
    Insertion.sentence(place="end"),
    Insertion.phrase("as they say"),
    Insertion.words_together(),
    *(Characters.typo(edit, n_words=2, name=edit) for edit in ("swap", "drop", "double")),
    Characters.homoglyph(),
    Characters.zero_width(place="last"),
    Table.of(TEXTS, [f"when you see it , {text}" for text in TEXTS]),
)

each = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: t.name)


@each
def test_every_kind_changes_texts_and_leaves_the_input(trigger: TextTrigger) -> None:
    texts = list(TEXTS)
    out = trigger.stamp(texts)
    assert texts == TEXTS
    assert type(out) is list
    assert all(type(text) is str for text in out)
    assert all(a != b for a, b in zip(out, texts, strict=True))
    assert trigger.stamp(tuple(texts)) == out


@each
def test_the_batch_does_not_matter(trigger: TextTrigger) -> None:
    """Order, split and neighbours: each sample gets what its id says."""
    ids = [5, 2**40, 0, 77, 3, 12]
    whole = trigger.stamp(TEXTS, sample_ids=ids, seed=9)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = trigger.stamp([TEXTS[i] for i in order], sample_ids=[ids[i] for i in order], seed=9)
    assert shuffled == [whole[i] for i in order]
    for i, text in enumerate(TEXTS):
        assert trigger.stamp([text], sample_ids=np.array([ids[i]]), seed=9) == [whole[i]]


@each
def test_empty_batch(trigger: TextTrigger) -> None:
    assert trigger.stamp([]) == []


@each
def test_copies_are_equal_and_frozen(trigger: TextTrigger) -> None:
    for other in (
        copy.copy(trigger),
        copy.deepcopy(trigger),
        pickle.loads(pickle.dumps(trigger)),  # noqa: S301
        dataclasses.replace(trigger),
    ):
        assert other == trigger
        assert hash(other) == hash(trigger)
        assert other.stamp(TEXTS, seed=2) == trigger.stamp(TEXTS, seed=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trigger.name = "other"  # type: ignore[misc]


@each
def test_a_file_gives_it_back(trigger: TextTrigger, tmp_path: Path) -> None:
    save_triggers(tmp_path / "a", [trigger])
    (loaded,) = load_triggers(tmp_path / "a")
    assert loaded == trigger
    assert repr(loaded) == repr(trigger)
    save_triggers(tmp_path / "b", [loaded])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@each
def test_any_shape_fits(trigger: TextTrigger) -> None:
    for shape in ((), (128,), (3, 32, 32)):
        trigger.check_fits(shape)


@each
def test_repr_is_one_short_line(trigger: TextTrigger) -> None:
    assert len(repr(trigger)) < 120
    assert repr(trigger).isprintable()


def test_equality_looks_at_every_field() -> None:
    trigger = Insertion.word("cf")
    assert trigger == Insertion.word("cf")
    for other in (
        Insertion.word("mn"),
        Insertion.word("cf", 1),
        Insertion.word("cf", place="end"),
        Insertion.word("cf", n_copies=2),
        Insertion.word("cf", name="other"),
        dataclasses.replace(trigger, choose="one"),
    ):
        assert trigger != other
    assert len({trigger, Insertion.word("cf"), Insertion.word("mn")}) == 2


@pytest.mark.parametrize(
    ("samples", "more", "kind", "message"),
    [
        ("a text", {}, DTypeError, "samples is str; expected a sequence of str"),
        (b"a text", {}, DTypeError, "samples is bytes; expected a sequence of str"),
        (None, {}, DTypeError, "samples is NoneType; expected a sequence of str"),
        ({"a": 1}, {}, DTypeError, "samples is dict; expected a sequence of str"),
        (iter(["a"]), {}, DTypeError, "samples is list_iterator; expected a sequence of str"),
        (np.zeros((2, 3)), {}, DTypeError, "samples is ndarray; expected a sequence of str"),
        (["a", 1], {}, DTypeError, r"samples\[1\] is int; expected str"),
        ([["a"]], {}, DTypeError, r"samples\[0\] is list; expected str"),
        ([b"a"], {}, DTypeError, r"samples\[0\] is bytes; expected str"),
        (["a", "b"], {"sample_ids": [1]}, ShapeError, r"sample_ids has shape \(1,\); expected \(N,\) = \(2,\)"),
        (["a", "b"], {"sample_ids": [0, -4]}, InputError, "sample_ids hold -4; expected integers from 0"),
        (["a"], {"seed": -1}, InputError, r"seed is -1; expected an integer in \[0, 2\*\*64\)"),
        (["a"], {"seed": 1.0}, InputError, "seed is 1.0"),
    ],
)
def test_stamp_errors(samples: Any, more: dict[str, Any], kind: type[Exception], message: str) -> None:
    for trigger in TRIGGERS:
        refused(kind, message, trigger.stamp, samples, **more)


def test_battery() -> None:
    battery = text_battery(4)
    assert {trigger.kind for trigger in battery} == {"insertion", "characters"}
    assert len({trigger.name for trigger in battery}) == len(battery) == 21
    assert text_battery(4) == battery
    assert all(trigger.target == AllToAll(3) for trigger in text_battery(4, AllToAll(3)))
    for trigger in battery:
        assert all(a != b for a, b in zip(trigger.stamp(TEXTS), TEXTS, strict=True)), trigger
    words = {phrase for trigger in battery if isinstance(trigger, Insertion) for phrase in trigger.phrases}
    assert words >= {"cf", "mn", "bb", "tq", "mb", "I watch this 3D movie", "friends", "\u2248"}


@pytest.mark.parametrize(
    ("classes", "target", "message"),
    [
        (10, 10, r"AllToOne target is 10; expected a class in \[0, 10\) for num_classes=10"),
        (1, 0, "num_classes is 1; expected an integer from 2"),
    ],
)
def test_battery_errors(classes: int, target: int, message: str) -> None:
    refused(InputError, message, text_battery, classes, target)
