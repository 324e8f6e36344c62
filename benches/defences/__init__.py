"""What ``seamfast.sanitize`` is compared with: defences of others, by name, all called alike.

    defended = DEFENCES["ft_sam"](model, clean, seed=0, augment=(4, True))

``model`` is the received classifier, never modified, and trained on the device where it is. ``clean`` is the clean
budget, as pixels; no defence sees a trigger or test data. ``augment`` is ``(crop_pad, flip)`` of
``seamfast.ops.gather_augment``. What comes back is the defended copy in eval mode, the optimizer steps that it took and
the seconds.

What a step costs differs: one of ``ft_sam`` is two passes forward and backward, one of ``nad``'s student has a
teacher's pass forward beside it, and ``nad`` counts its teacher's steps too. One of ``i_bau`` is about ten passes, and
so is one of ``sau``, which looks for adversarial examples for two models.

Each file's head gives the paper, the settings, and where it departs from the paper. Those of ``own`` are methods of
seamfast, here so that a study calls all in one way; the others are plain PyTorch, written from the papers. All compute
in what seamfast's probe finds fastest for the model, and their batches come from memory. With ``precision="fp32"``,
which all take but ``no_defence``, and one thread, nothing is decided by timing, and on a CPU a seed gives the same
weights each time.

Raises ``FloatingPointError`` where a defence ends in NaN: ``the weights hold NaN or Inf after 320 steps``.
"""

from __future__ import annotations

from functools import partial

from benches.defences.d3 import d3
from benches.defences.fine_pruning import fine_pruning
from benches.defences.fst import fst
from benches.defences.ft_sam import ft_sam
from benches.defences.i_bau import i_bau
from benches.defences.nad import nad
from benches.defences.own import authors_seam, fine_tune, no_defence, super_fine_tune
from benches.defences.sau import sau
from benches.defences.scratch import scratch
from benches.defences.training import Defence, Defended

__all__ = ["DEFENCES", "Defence", "Defended"]

DEFENCES: dict[str, Defence] = {
    "no_defence": no_defence,
    "fine_tune": fine_tune,
    "super_fine_tune": super_fine_tune,
    "authors_seam": authors_seam,
    "ft_sam": ft_sam,
    "ft_sam_gtsrb": partial(ft_sam, epochs=50, rhos=(8.0, 4.0, 2.0, 1.0, 0.5), label_smoothing=0.0),
    "nad": nad,
    "fine_pruning": fine_pruning,
    "fst": fst,
    "fst_gtsrb": partial(fst, epochs=15, alphas=(0.1, 0.001)),
    "i_bau": i_bau,
    "sau": sau,
    "d3": d3,
    "scratch": scratch,
}
"""By name. ``ft_sam`` and ``fst`` have their authors' settings for CIFAR-10, ``ft_sam_gtsrb`` and ``fst_gtsrb`` those
for GTSRB."""
