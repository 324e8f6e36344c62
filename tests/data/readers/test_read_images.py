from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from reader_files import allocating_at_most, image_bytes, png_claiming, write_zip
from refusals import refused

from seamfast.data.readers import read_image_folder, read_image_zip
from seamfast.errors import DataFileError, InputError

MIB = 1 << 20
RGB = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
GREY = RGB[..., 0]
SMOOTH = np.full((8, 6, 3), 128, np.uint8)


def write_folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.fixture(params=["folder", "zip"])
def read(request, tmp_path):
    """Reads the given files through one of the two readers."""

    def read_files(files: dict[str, bytes], **options):
        if request.param == "zip":
            return read_image_zip(write_zip(tmp_path / "images.zip", files), **options)
        return read_image_folder(write_folder(tmp_path / "images", files), **options)

    return read_files


def test_reads_class_folders(read):
    files = {
        "dog/b.PNG": image_bytes(RGB + np.uint8(1)),
        "dog/a.png": image_bytes(RGB),
        "cat/z.jpg": image_bytes(SMOOTH, "JPEG"),
        "Owl/1.jpeg": image_bytes(SMOOTH, "JPEG"),
    }
    data = read(files, mean=0.5, std=0.5)
    assert data.class_names == ("Owl", "cat", "dog")
    assert (data.num_classes, data.labels.tolist()) == (3, [0, 1, 2, 2])
    assert data.inputs.shape == (4, 3, 8, 6)
    assert torch.equal(data.inputs[2], torch.from_numpy(RGB).permute(2, 0, 1))
    assert torch.equal(data.inputs[3], torch.from_numpy(RGB + np.uint8(1)).permute(2, 0, 1))
    assert (data.inputs[:2].int() - 128).abs().max() <= 1
    assert data.mean == (0.5,)


def test_order_does_not_depend_on_threads(read):
    files = {f"c{k % 3}/{k:03}.png": image_bytes(np.full((2, 2), k, np.uint8)) for k in range(100)}
    one, many = (read(files, threads=n) for n in (1, 4))
    assert torch.equal(one.inputs, many.inputs)
    assert one.inputs[:, 0, 0, 0].tolist() == sorted(range(100), key=lambda k: (k % 3, k))


def test_channels(read):
    files = {"a/1.png": image_bytes(GREY), "a/2.png": image_bytes(GREY)}
    assert torch.equal(read(files).inputs[:, 0], torch.from_numpy(np.stack([GREY, GREY])))
    assert torch.equal(read(files, channels=3).inputs[1, 2], torch.from_numpy(GREY))
    mixed = files | {"b/3.png": image_bytes(RGB)}
    refused(DataFileError, r"b/3\.png: is color, the first image grey; pass channels=1 or 3 to convert", read, mixed)
    assert read(mixed, channels=1).image_shape == (1, 8, 6)
    assert read(mixed, channels=3).image_shape == (3, 8, 6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_eight_bits_is_read(read, mode):
    out = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(out, "JPEG" if mode == "CMYK" else "PNG")
    assert read({"a/1.png": out.getvalue()}).image_shape == (1 if mode in ("1", "L", "LA") else 3, 8, 6)


@pytest.mark.parametrize("channels", [1, 3])
def test_transparency_is_dropped_without_a_warning(read, channels):
    out = io.BytesIO()
    Image.fromarray(RGB).convert("P").save(out, "PNG", transparency=bytes(range(200)))
    assert read({"a/1.png": out.getvalue()}, channels=channels).image_shape == (channels, 8, 6)


def test_pixels_of_sixteen_bits_are_refused(read):
    deep = image_bytes(GREY.astype(np.uint16) * 257)
    with pytest.raises(DataFileError, match=r"a/1\.png: has pixels of more than 8 bits \(mode I;?16\w*\)"):
        read({"a/1.png": deep}, channels=1)


def test_sizes(read):
    files = {"a/1.png": image_bytes(RGB), "a/2.png": image_bytes(RGB[:7])}
    refused(DataFileError, r"a/2\.png: is 7 x 6 \(height x width\), the first image 8 x 6; pass size=", read, files)
    data = read(files, size=(4, 3))
    wanted = np.asarray(Image.fromarray(RGB).resize((3, 4), Image.Resampling.BILINEAR))
    assert torch.equal(data.inputs[0], torch.from_numpy(wanted.copy()).permute(2, 0, 1))


def test_other_files_are_ignored(read):
    files = {
        "a/1.png": image_bytes(RGB),
        "a/notes.txt": b"x",
        "a/Thumbs.db": b"x",
        "a/.DS_Store": b"x",
        "a/nested.zip": b"PK",
        ".git/x/1.png": b"x",
        "__MACOSX/a/._1.png": b"x",
        "README": b"x",
    }
    data = read(files)
    assert (len(data), data.class_names) == (1, ("a",))


def test_an_empty_class_folder_keeps_its_number(tmp_path):
    write_folder(tmp_path, {"b/1.png": image_bytes(RGB)})
    (tmp_path / "a").mkdir()
    data = read_image_folder(tmp_path)
    assert (data.class_names, data.labels.tolist()) == (("a", "b"), [1])
    path = write_zip(tmp_path / "a.zip", {"a/": b"", "b/1.png": image_bytes(RGB)})
    data = read_image_zip(path)
    assert (data.class_names, data.labels.tolist()) == (("a", "b"), [1])


def test_layouts_that_are_refused(read, tmp_path):
    png = image_bytes(RGB)
    refused(DataFileError, r"1\.png lies outside any class folder; expected class/image\.png", read, {"1.png": png})
    (tmp_path / "images" / "1.png").unlink(missing_ok=True)
    refused(DataFileError, r"holds 1\.gif, but no image; looked for \.jpeg, \.jpg, \.png", read, {"a/1.gif": b"GIF89a"})
    message = r"class folder .* has unprintable characters in its name|has an unusable name"
    refused(DataFileError, message, read, {"\x1b[2Ja/1.png": png})


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataFileError, match=r"no class folders; expected class/image\.png, with \.jpeg, \.jpg, \.png"):
        read_image_folder(tmp_path)
    (tmp_path / "a").mkdir()
    refused(DataFileError, "no images in 1 class folders", read_image_folder, tmp_path)
    with pytest.raises(DataFileError, match="absent: no such folder; looked for a folder of class folders"):
        read_image_folder(tmp_path / "absent")
    with pytest.raises(DataFileError, match=r"absent\.zip: no such file; looked for a zip of class folders"):
        read_image_zip(tmp_path / "absent.zip")
    refused(DataFileError, "no class folders", read_image_zip, write_zip(tmp_path / "empty.zip", {}))
    write_folder(tmp_path, {"a/b/1.png": image_bytes(RGB)})
    refused(DataFileError, r"a: holds a folder, b; expected images only", read_image_folder, tmp_path)
    path = write_zip(tmp_path / "deep.zip", {"top/a/1.png": image_bytes(RGB)})
    refused(DataFileError, r"top/a/1\.png lies too deep; expected class/image\.png: pass folder=", read_image_zip, path)


def test_zip_folder_says_where_the_classes_lie(tmp_path):
    files = {
        "set/train/a/1.png": image_bytes(RGB),
        "set/test/a/1.png": image_bytes(RGB),
        "set/test/b/1.png": image_bytes(RGB),
    }
    path = write_zip(tmp_path / "a.zip", files, zipfile.ZIP_DEFLATED)
    assert read_image_zip(path, folder="set/train").class_names == ("a",)
    assert read_image_zip(path, folder="/set/test/").class_names == ("a", "b")


BAD_IMAGES = {
    "empty": (b"", r"is not a JPEG or PNG image"),
    "text": (b"no image at all", r"is not a JPEG or PNG image"),
    "GIF": (image_bytes(GREY, "GIF"), r"is not a JPEG or PNG image"),
    "BMP": (image_bytes(RGB, "BMP"), r"is not a JPEG or PNG image"),
    "TIFF": (image_bytes(RGB, "TIFF"), r"is not a JPEG or PNG image"),
    "cut PNG": (image_bytes(RGB)[:-60], "cannot be decoded"),
    "cut JPEG": (
        image_bytes(np.tile(RGB, (20, 20, 1)), "JPEG")[:-5000],
        r"cannot be decoded \(image file is truncated",
    ),
    "60000 x 60000": (png_claiming(60000, 60000), "declares too many pixels; the limit is max_pixels=33,554,432"),
    "10000 x 10000": (png_claiming(10000, 10000), "declares too many pixels|declares 10,000 x 10,000"),
    "6000 x 7000": (
        png_claiming(7000, 6000),
        r"declares 6,000 x 7,000 \(height x width\), 42,000,000 pixels; the limit is",
    ),
    "PNG without data": (png_claiming(40, 30), "cannot be decoded"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", r"is not a JPEG or PNG image"),
}


@pytest.mark.parametrize(("data", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
@pytest.mark.parametrize("size", [None, (4, 4)])
def test_bad_images_are_refused_by_name(read, data, message, size):
    with allocating_at_most(4 * MIB):
        refused(DataFileError, rf"a/1\.png: ({message})", read, {"a/1.png": data}, size=size)


def test_the_first_bad_image_is_the_one_named(read):
    files = {f"a/{k:03}.png": image_bytes(GREY) for k in range(200)}
    files["a/050.png"] = files["a/150.png"] = b"bad"
    for _ in range(3):
        refused(DataFileError, r"a/050\.png", read, files, threads=4)


def test_pillow_keeps_its_settings(read):
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    with pytest.raises(DataFileError):
        read({"a/1.png": png_claiming(60000, 60000)})
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def test_own_pixel_limit_holds_where_pillow_has_none(read, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    vast = {"a/1.png": png_claiming(60000, 60000)}
    with allocating_at_most(4 * MIB):
        refused(DataFileError, r"declares 60,000 x 60,000 .* the limit is max_pixels=", read, vast)
    refused(DataFileError, "48 pixels; the limit is max_pixels=47", read, {"a/1.png": image_bytes(RGB)}, max_pixels=47)


def test_a_switch_that_hides_truncation_is_refused(read, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES is True, which hides truncated images; expected False"):
        read({"a/1.png": image_bytes(RGB)})


def test_budget_is_checked_before_decoding(read):
    files = {f"a/{k}.png": image_bytes(RGB) for k in range(3)}
    with pytest.raises(DataFileError, match=r"images(\.zip)?: would take 432 bytes; the limit is max_bytes=431"):
        read(files, max_bytes=431)
    assert len(read(files, max_bytes=432)) == 3
    with allocating_at_most(4 * MIB):
        refused(DataFileError, r"would take 9,000,000,000,000 bytes", read, files, size=(10**6, 10**6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, "channels is 2; expected 1, 3 or None"),
        ({"size": (8,)}, r"size is \(8,\); expected \(H, W\), two integers of at least 1"),
        ({"size": 8}, r"size is 8; expected \(H, W\)"),
        ({"size": (0, 8)}, r"size is \(0, 8\); expected"),
        ({"threads": 0}, "threads is 0; expected an integer of at least 1"),
    ],
)
def test_bad_arguments(read, options, message):
    refused(InputError, message, read, {"a/1.png": image_bytes(RGB)}, **options)


def test_without_pillow_the_extra_is_named(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    refused(InputError, r"reading images needs Pillow: pip install seamfast\[images\]", read, {"a/1.png": b""})


def test_progress_is_shown_on_request_only(read, capsys):
    files = {"a/1.png": image_bytes(RGB)}
    read(files)
    assert capsys.readouterr().err == ""
    read(files, progress=True)
    assert "1/1" in capsys.readouterr().err


@pytest.mark.parametrize("link", ["class", "image", "image inside"])
def test_links_are_not_followed(tmp_path, link):
    root = write_folder(tmp_path / "root", {"a/1.png": image_bytes(RGB)})
    outside = write_folder(tmp_path / "outside", {"secret.png": image_bytes(RGB)})
    if link == "class":
        (root / "b").symlink_to(outside)
    else:
        (root / "a" / "2.png").symlink_to(outside / "secret.png" if link == "image" else root / "a" / "1.png")
    refused(DataFileError, "is a symbolic link; links below the root are not followed", read_image_folder, root)


def test_the_root_itself_may_be_a_link(tmp_path):
    write_folder(tmp_path / "root", {"a/1.png": image_bytes(RGB)})
    (tmp_path / "link").symlink_to(tmp_path / "root")
    assert len(read_image_folder(tmp_path / "link")) == 1


def test_a_pipe_does_not_block(tmp_path):
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "1.png")
    refused(DataFileError, "is not a regular file", read_image_folder, tmp_path)


def test_an_encoded_image_may_not_be_vast(tmp_path):
    write_folder(tmp_path, {"a/1.png": b""})
    os.truncate(tmp_path / "a" / "1.png", 65 * MIB)
    with allocating_at_most(MIB):
        refused(DataFileError, "68,157,440 bytes; the limit for one encoded image", read_image_folder, tmp_path)
    path = write_zip(tmp_path / "a.zip", {"a/1.png": bytes(65 * MIB)}, zipfile.ZIP_DEFLATED)
    with allocating_at_most(MIB):
        refused(DataFileError, r"a\.zip: 66,\d+ bytes would unpack to 68,157,440; expected at", read_image_zip, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../a/1.png", "leaves the archive; expected names like class/image.png"),
        ("a/../../1.png", "leaves the archive"),
        ("/etc/1.png", "leaves the archive"),
        ("C:/1.png", "leaves the archive"),
        ("a\\1.png", "has an unusable name"),
        ("a//1.png", "has an unusable name"),
        ("./a/1.png", "has an unusable name"),
        ("a/\x1b[2J.png", "has an unusable name"),
    ],
)
def test_zip_names_that_lead_elsewhere(tmp_path, name, message):
    path = write_zip(tmp_path / "a.zip", {"ok/1.png": image_bytes(RGB), name: image_bytes(RGB)})
    assert refused(DataFileError, message, read_image_zip, path).isprintable()
    assert sorted(os.listdir(tmp_path)) == ["a.zip"]


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("a/1.png")
        info.create_system = 3
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataFileError, match=r"member a/1\.png is a symbolic link; expected plain members"):
        read_image_zip(tmp_path / "a.zip")


def test_zip_checksum_is_checked(tmp_path):
    path = write_zip(tmp_path / "a.zip", {"a/1.png": image_bytes(RGB)})
    data = bytearray(path.read_bytes())
    data[14:18] = data[data.index(b"PK\x01\x02") + 16 :][:4] = struct.pack("<I", 1)
    data[data.index(b"PK\x01\x02") + 16 : data.index(b"PK\x01\x02") + 20] = struct.pack("<I", 1)
    path.write_bytes(data)
    refused(DataFileError, r"a/1\.png: data is truncated or corrupt \(Bad CRC-32", read_image_zip, path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=200, deadline=None)
@given(data=st.data(), format=st.sampled_from(["PNG", "JPEG"]))
def test_any_damage_to_an_image_reads_or_raises_data_file_error(scratch, data, format):
    whole = bytearray(image_bytes(RGB, format))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    root = write_folder(scratch / "images", {"a/1.png": bytes(whole[: data.draw(st.integers(1, len(whole)))])})
    try:
        read_image_folder(root, size=(4, 4), channels=3, threads=1)
    except DataFileError:
        return


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_zip_reads_or_raises_data_file_error(scratch, data):
    files = {"a/1.png": image_bytes(GREY), "b/2.png": image_bytes(GREY)}
    path = write_zip(scratch / "a.zip", files, zipfile.ZIP_DEFLATED)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    with allocating_at_most(8 * MIB):
        try:
            read_image_zip(path, threads=1)
        except DataFileError:
            return
