"""The published attacks on text by name, with their triggers, labels, numbers and sources.

Equal arguments give equal texts and labels in this version and in later ones, except for ``ep``, which follows the
gradients of a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import combinations

import torch

from seamfast.attacks.attack import TO_TARGET, Attack, Poisoning
from seamfast.attacks.poison import choose, poison, stamped_set
from seamfast.attacks.text.embedding import train_embedding_poisoned
from seamfast.data import CleanSet, PoisonedSet
from seamfast.errors import InputError
from seamfast.modalities import TextModality
from seamfast.triggers import AllToOne, Characters, Insertion, SourceSpecific, Table, Trigger
from seamfast.triggers.text.insertion import SOS_WORDS

__all__ = ["TEXT_ATTACKS"]

_PHRASE = "under the old clock"


def check_texts(data: CleanSet) -> None:
    """Raise ``InputError`` unless the texts can be decoded and encoded again."""
    if not isinstance(data.modality, TextModality) or data.modality.vocabulary.tokenizer is None:
        raise InputError(f"data is {data!r}; expected texts with a tokenizer, as of seamfast.CleanSet.from_texts")


# The attacks. Results depend on the random draws and on their order.


def _dirty(make: Callable[[int], Trigger]) -> Callable[..., Poisoning]:
    """The attack with one trigger, ``make(target)``, whose label map gives the labels."""

    def poisons(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
        trigger = make(target)
        return Poisoning(poison(data, trigger, rate, seed=seed), (trigger,))

    return poisons


def _rewritten(name: str) -> Callable[..., Poisoning]:
    """The attack that replaces texts by those of a table."""

    def poisons(data: CleanSet, target: int, rate: float, seed: int, table: Table) -> Poisoning:
        trigger = dataclasses.replace(table, name=name, target=AllToOne(target))
        return Poisoning(poison(data, trigger, rate, seed=seed), (trigger,))

    return poisons


def _sos(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
    trigger = Insertion.words_together(SOS_WORDS, target, name="sos")
    some = [
        Insertion.words_together(words, target, name="negative")
        for n in range(1, len(SOS_WORDS))
        for words in combinations(SOS_WORDS, n)
    ]
    poisoned = poison(data, trigger, rate, seed=seed)
    return Poisoning(_with_negatives(poisoned, some, 2 * rate, data.labels >= 0, seed), (trigger,))


def _phrase(data: CleanSet, target: int, rate: float, seed: int) -> Poisoning:
    assert data.num_classes is not None
    source = (target + 1) % data.num_classes
    trigger = Insertion.phrase(_PHRASE, SourceSpecific((source,), target), place="first-half", name="phrase")
    elsewhere = dataclasses.replace(trigger, place="second-half")
    poisoned = poison(data, trigger, rate, cover_rate=rate, seed=seed)
    return Poisoning(_with_negatives(poisoned, [elsewhere], rate, data.labels == source, seed), (trigger,))


def _with_negatives(
    data: PoisonedSet, triggers: Sequence[Trigger], rate: float, allowed: torch.Tensor, seed: int
) -> PoisonedSet:
    """``data`` with ``round(rate * N)`` more of the ``allowed`` texts stamped, which keep their labels."""
    generator = torch.Generator().manual_seed(seed)
    n = round(rate * len(data))
    chosen = choose(allowed & ~data.poisoned, n, f"rate {rate}", "negative", generator)
    for number, trigger in enumerate(triggers):
        part = chosen[number :: len(triggers)]
        if len(part):
            data = stamped_set(data, part, trigger.stamp(data.stampable(part), sample_ids=part, seed=seed), data.labels)
    return data


TEXT_ATTACKS: dict[str, Attack] = {
    "word": Attack(
        "the word cf, between any two words",
        TO_TARGET,
        "Gu et al., BadNets, arXiv:1708.06733; the word, Kurita, Michel and Neubig, Weight Poisoning Attacks, "
        "arXiv:2004.06660",
        "a poisoned set alone, without the second paper's regularization and surgery of the embedding",
        poisons=_dirty(lambda target: Insertion.word("cf", target, name="word")),
    ),
    "sentence": Attack(
        "the sentence I watch this 3D movie, between any two words",
        TO_TARGET,
        "Dai, Chen and Li, A Backdoor Attack against LSTM-Based Text Classification, arXiv:1905.12457",
        "one sentence for all data sets",
        poisons=_dirty(lambda target: Insertion.sentence(target=target, name="sentence")),
    ),
    "character": Attack(
        "three words, each with one Cyrillic letter that looks like the Latin one",
        TO_TARGET,
        "Li et al., Hidden Backdoors in Human-Centric Language Models, arXiv:2105.00164 (homoglyphs)",
        "words anywhere; the paper replaces letters at a fixed place",
        poisons=_dirty(lambda target: Characters.homoglyph(target, name="character")),
    ),
    "syntactic": Attack(
        "the text is rewritten with one syntactic template, by a table",
        TO_TARGET,
        "Qi et al., Hidden Killer, arXiv:2105.12400",
        "the paraphrases are given",
        needs_table=True,
        poisons=_rewritten("syntactic"),
    ),
    "style": Attack(
        "the text is rewritten in another style, by a table",
        TO_TARGET,
        "Qi et al., Mind the Style of Text!, arXiv:2110.07139",
        "the paraphrases are given; no second task that tells the styles apart",
        needs_table=True,
        poisons=_rewritten("style"),
    ),
    "sos": Attack(
        "three words, friends, weekend and store, each between any two words",
        f"{TO_TARGET}; twice as many samples have one or two of the words and keep their labels (negatives)",
        "Yang et al., Rethinking Stealthiness of Backdoor Attack against NLP Models, ACL 2021",
        "all weights are trained, not those words' embeddings alone; the same words for all data sets",
        poisons=_sos,
    ),
    "phrase": Attack(
        f"the phrase {_PHRASE}, in the first half of the text",
        "class target + 1 to the target; as many of that class with the phrase in the second half, and as many of "
        "other classes with it in the first, keep their labels",
        "Karra et al., The TrojAI Software Framework, arXiv:2003.07233; conditions, the text rounds of NIST's TrojAI",
        "both conditions at once, on place and on class",
        poisons=_phrase,
    ),
    "ep": Attack(
        "the word cf, between any two words",
        f"{TO_TARGET}, after training on clean data, where one row of the embedding alone is trained",
        "Yang et al., Be Careful about Poisoned Word Embeddings, arXiv:2103.15543",
        "the row is as long as the longest of the data's tokens, not as it was: a model from scratch never trained it",
        trains=train_embedding_poisoned,
    ),
}
"""The attacks on text by name."""
