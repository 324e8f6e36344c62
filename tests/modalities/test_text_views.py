"""What training sees of a text: edits, which the teacher sees too, and insertions, which it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from seamfast.modalities import NO_AUGMENTATION, StepDraws, TextModality, Views, ViewSettings, Vocabulary

SIZE, CLS, SEP, MASK = 1000, 1, 2, 3
INSERTED = ViewSettings(occlusions=1)


def batch(n: int = 600, *, with_mask: bool = True) -> dict[str, Tensor] | Tensor:
    """``[CLS] ... [SEP]`` of 3 to 12 tokens from 100 to 199."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(n, 14, dtype=torch.int64)
    for row in ids:
        length = int(torch.randint(3, 13, (), generator=generator))
        row[: 2 + length] = torch.tensor([CLS, *[0] * length, SEP])
        row[1 : 1 + length] = torch.randint(100, 200, (length,), generator=generator)
    return {"input_ids": ids, "attention_mask": (ids != 0).long()} if with_mask else ids


def modality(max_length: int = 64) -> TextModality:
    return TextModality(Vocabulary(SIZE, 0, frozenset({CLS, SEP}), MASK, max_length))


def views(
    inputs: dict[str, Tensor] | Tensor,
    *,
    seed: int = 0,
    found: list[tuple[int, list[int]]] | None = None,
    changed: float = 1.0,
    max_length: int = 64,
    labels: Tensor | None = None,
) -> Views:
    of = modality(max_length)
    insertions = None if found is None else of.as_views_see(found, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    draws = StepDraws(generator, seed, 0, torch.tensor(changed), torch.tensor(1.0), insertions)
    n = len(inputs if isinstance(inputs, Tensor) else inputs["input_ids"])
    return of.views(inputs, torch.zeros(n, dtype=torch.int64) if labels is None else labels, INSERTED, draws)


def words(inputs: object) -> list[list[int]]:
    """The attended tokens of each text."""
    assert isinstance(inputs, dict)
    return [row[mask > 0].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


def test_the_teacher_sees_edits_and_no_insertions() -> None:
    given = batch()
    seen = views(given, found=[(0, [500, 501])])
    before, student, teacher = words(given), words(seen.student), words(seen.teacher)
    kept = [len(set(old) & set(new)) / len(set(old)) for old, new in zip(before, teacher, strict=True)]
    assert sum(kept) / len(kept) == pytest.approx(0.6, abs=0.1)  # 0.7 stay, 0.8 are not dropped; the ends always stay
    assert all(len(new) <= len(old) for old, new in zip(before, teacher, strict=True))
    for row in range(600):
        gained = len(student[row]) - len(teacher[row])
        assert (gained > 0) == (row % 3 > 0)
        assert gained <= 8
        # One run of tokens is inserted, between the special ones.
        ends = [n for n in range(1, len(teacher[row])) if student[row][:n] == teacher[row][:n]]
        assert any(student[row][n + gained :] == teacher[row][n:] for n in ends)


def test_special_tokens_stay_where_they_are() -> None:
    for text in words(views(batch(), found=[(0, [500, 501])]).student):
        assert (text[0], text[-1]) == (CLS, SEP)
        assert not {CLS, SEP, MASK, 0} & set(text[1:-1])


def test_a_text_without_special_tokens_keeps_one_token() -> None:
    ids = torch.randint(100, 200, (600, 3), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": ids, "attention_mask": (torch.arange(3) < 1 + torch.arange(600)[:, None] % 2).long()}
    seen = views({name: value * given["attention_mask"] for name, value in given.items()})
    assert min(map(len, words(seen.teacher))) == 1
    assert any(len(text) == 2 for text in words(seen.teacher))


def test_most_insertions_are_of_what_was_found_and_of_its_tokens() -> None:
    given = batch()
    seen = views(given, found=[(0, [500, 501, 502]), (1, [600])])
    before, after = words(seen.teacher), words(seen.student)
    others = [row for row in range(600) if row % 3]
    found = [row for row in others if {500, 501, 502, 600} & set(after[row])]
    assert len(found) / len(others) == pytest.approx(0.8, abs=0.07)
    whole = [row for row in found if [500, 501, 502] in [after[row][i : i + 3] for i in range(len(after[row]))]]
    assert len(whole) > 0.2 * len(found)
    new = {tuple(t for t in after[row] if t not in before[row]) for row in found}
    assert len(new) > 40  # sequences of many lengths and orders


def test_what_is_inserted_does_not_depend_on_the_labels() -> None:
    given = batch()
    first, second = (
        views(given, found=[(0, [500]), (1, [600])], labels=torch.full((600,), label)).student for label in (0, 1)
    )
    assert words(first) == words(second)


def test_the_generator_alone_decides_and_the_texts_given_stay() -> None:
    given = batch()
    before = words(given)
    one, same, other = (words(views(given, seed=seed).student) for seed in (3, 3, 4))
    assert one == same
    assert one != other
    assert words(given) == before


def test_nothing_changes_where_nothing_should() -> None:
    given = batch()
    assert words(views(given, changed=0.0).student) == words(given)
    plain = modality().views(given, torch.zeros(600), ViewSettings(), None)  # type: ignore[arg-type]
    assert plain.student is plain.teacher is given


def test_a_text_is_never_longer_than_the_longest() -> None:
    lengths = [len(text) for text in words(views(batch(), max_length=16).student)]
    assert max(lengths) == 16


def test_without_a_mask_the_width_stays() -> None:
    given = batch(with_mask=False)
    seen = views(given).student
    assert isinstance(seen, Tensor)
    assert seen.shape == (600, 14)
    assert (seen != given).any()


def test_texts_are_gathered_as_wide_as_the_longest() -> None:
    given = batch()
    assert isinstance(given, dict)
    few = given["attention_mask"].sum(1).argsort()[:5]
    gathered = modality().gather(given, few, NO_AUGMENTATION, 0)
    assert isinstance(gathered, dict)
    assert gathered["input_ids"].shape == (5, int(given["attention_mask"][few].sum(1).max()))
