"""Readers: data files to a ``CleanSet``, or to ``Texts``, one module for each format.

The files may be hostile. Every reader compares the sizes that a header declares with the size of the file before it
allocates, decompresses no more than declared, and reads no pickle. Anything else raises a ``DataFileError`` with the
file, what was found and what was expected.
"""

from seamfast.data.readers.cifar import read_cifar10
from seamfast.data.readers.digits import read_digits
from seamfast.data.readers.idx import read_fashion_mnist, read_idx, read_mnist
from seamfast.data.readers.images import read_image_folder, read_image_zip
from seamfast.data.readers.load import load
from seamfast.data.readers.mnist_5k import read_mnist_5k
from seamfast.data.readers.npz import read_npz
from seamfast.data.readers.tables import read_breast_cancer, read_csv_table, read_digits_table
from seamfast.data.readers.texts import read_texts

__all__ = [
    "load",
    "read_breast_cancer",
    "read_cifar10",
    "read_csv_table",
    "read_digits",
    "read_digits_table",
    "read_fashion_mnist",
    "read_idx",
    "read_image_folder",
    "read_image_zip",
    "read_mnist",
    "read_mnist_5k",
    "read_npz",
    "read_texts",
]
