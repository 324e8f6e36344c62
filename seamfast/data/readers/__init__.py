"""Readers: data files to a ``CleanSet``, one module a format.

The files may be hostile. Every reader therefore checks what a header promises against the size of the file before it
allocates, decompresses no further than promised, reads no pickle, and answers anything else with a ``DataFileError``
that names the file, what was found and what was wanted.
"""

from seamfast.data.readers.cifar import read_cifar10
from seamfast.data.readers.digits import read_digits
from seamfast.data.readers.idx import read_fashion_mnist, read_idx, read_mnist
from seamfast.data.readers.images import read_image_folder, read_image_zip
from seamfast.data.readers.load import load
from seamfast.data.readers.npz import read_npz

__all__ = [
    "load",
    "read_cifar10",
    "read_digits",
    "read_fashion_mnist",
    "read_idx",
    "read_image_folder",
    "read_image_zip",
    "read_mnist",
    "read_npz",
]
