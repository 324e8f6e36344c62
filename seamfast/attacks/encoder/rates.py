"""What a backdoor in an encoder does to a head that is trained on it: CA, BA, ASR and ASR-B."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from seamfast.data import CleanSet
from seamfast.evaluate import evaluate
from seamfast.metrics import Rate
from seamfast.triggers import Trigger

__all__ = ["EncoderRates", "encoder_rates"]


@dataclass(frozen=True)
class EncoderRates:
    """The four rates of BadEncoder's evaluation, each with its counts.

    Attributes:
        clean_accuracy: CA, of the classifier on the clean encoder.
        backdoored_accuracy: BA, of the classifier on the encoder with the backdoor.
        attack_success_rate: ASR, of the trigger on the encoder with the backdoor.
        clean_attack_success_rate: ASR-B, of the trigger on the clean encoder: the floor.
    """

    clean_accuracy: Rate
    backdoored_accuracy: Rate
    attack_success_rate: Rate
    clean_attack_success_rate: Rate


def encoder_rates(clean: nn.Module, backdoored: nn.Module, test: CleanSet, trigger: Trigger) -> EncoderRates:
    """``evaluate(..., test, triggers=[trigger])`` of two classifiers, one on either encoder.

    Args:
        clean, backdoored: return logits; fitted on the same clean samples, see ``seamfast.models.with_head``.
        test: samples that neither was trained on.
        trigger: its target is the class that is counted as success.

    Raises: as ``seamfast.evaluate``.

    Source: Jia, Liu and Gong, "BadEncoder", arXiv:2108.00352, section V.
    """
    before, after = (evaluate(model, test, triggers=[trigger], progress=False) for model in (clean, backdoored))
    return EncoderRates(
        before.clean_accuracy,
        after.clean_accuracy,
        after.triggers[0].attack_success_rate,
        before.triggers[0].attack_success_rate,
    )
