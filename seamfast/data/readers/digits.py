"""scikit-learn's digits: a small set that needs no download, for demonstrations and tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from seamfast.data.clean_set import CleanSet
from seamfast.data.readers.idx import DIGIT_NAMES
from seamfast.data.readers.labels import check_split
from seamfast.errors import InputError

_TEST_SHARE = 0.2


def read_digits(
    split: str = "train",
    seed: int = 0,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> CleanSet:
    """``CleanSet(rint(load_digits().images * 255 / 16), target)``, split 80:20 within each class.

    Args:
        split: ``"train"`` (1,438 images) or ``"test"`` (359).
        seed: at least 0; equal seeds give equal splits, on any version of NumPy.
        mean, std: normalization in units of the ``[0, 1]`` pixel scale; default none.

    Returns:
        Images ``(N, 1, 8, 8)`` uint8, labels ``(N,)`` int64 in ``[0, 10)``, in the order of scikit-learn.

    Raises:
        InputError: ``read_digits needs scikit-learn: pip install seamfast[demo]``, ``split is 'val'; expected 'train'
            or 'test'``, ``seed is -1; expected an integer of at least 0``.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, as
        shipped by ``sklearn.datasets.load_digits``.

    Example:
        >>> len(read_digits("train")), len(read_digits("test"))
        (1438, 359)
    """
    check_split(split)
    _check_seed(seed)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("read_digits needs scikit-learn: pip install seamfast[demo]") from error
    digits = load_digits()
    labels = np.asarray(digits.target, dtype=np.int64)
    pixels = np.rint(np.asarray(digits.images) * (255 / 16)).astype(np.uint8)
    in_test = test_share(labels, seed)
    chosen = in_test if split == "test" else ~in_test
    return CleanSet(pixels[chosen], labels[chosen], mean=mean, std=std, num_classes=10, class_names=DIGIT_NAMES)


def test_share(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.bool_]:
    """``(N,)``: whether each sample is in the test split, a fifth of each class drawn by ``seed``."""
    _check_seed(seed)
    # NumPy keeps the stream of raw draws fixed (NEP 19); Generator.permutation may change.
    draws = np.asarray(np.random.PCG64(seed).random_raw(len(labels)))
    in_test = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shuffled = members[np.argsort(draws[members], kind="stable")]
        in_test[shuffled[: round(_TEST_SHARE * len(members))]] = True
    return in_test


def _check_seed(seed: int) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise InputError(f"seed is {seed!r}; expected an integer of at least 0")
