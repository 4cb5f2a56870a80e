"""A user's own data set: an `.npz` file with arrays, or a folder of images with one sub-folder per class."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.errors import InputError
from testbed.inference.data import SPLITS, Dataset, ImageSize, Split

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_BYTES = 4 * 2**30  # of one split in memory
_NPZ_HELP = ("write numpy.savez(file, x=images, y=labels): x uint8 (N, H, W, C), (N, C, H, W) or (N, H, W), or float32 "
             "in 0..1; y integers (N,); other splits as x_train, y_train, x_calibration, y_calibration")
_FOLDER_HELP = "put images into CLASS/*.png (or .jpg), or into train/CLASS/, calibration/CLASS/ and test/CLASS/"


def load_own(path: Path, split: Split, image_size: ImageSize | None) -> Dataset:
    """A split of the data set at `path`. Raises InputError naming file and remedy. Nothing is ever unpickled."""
    if path.is_dir():
        return _folder(path, split, image_size, _signature(path))
    if not path.is_file():
        raise InputError("there is no such data set", file=path, key="dataset",
                         remedy="give the path of an .npz file or a folder of images, relative to the scenario file")
    if image_size is not None:
        raise InputError("belongs to a folder of images", file=path, key="image_size", value=list(image_size),
                         remedy="store the arrays of an .npz file in the size that the model takes; remove image_size")
    return _npz(path, split, path.stat().st_mtime_ns)


def own_sha256(path: Path) -> str:
    """Digest of the file, or of the names and contents of all images of the folder. Raises InputError."""
    try:
        if path.is_dir():
            total = hashlib.sha256()
            for file in _images(path):
                total.update(f"{file.relative_to(path)}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
            return total.hexdigest()
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", file=path, key="dataset",
                         remedy="check the path and its permissions") from None


# ---- arrays ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _npz(path: Path, split: Split, mtime_ns: int) -> Dataset:
    names = (f"x_{split}", f"y_{split}")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {item.filename.removesuffix(".npy"): item.file_size for item in archive.infolist()}
        if split == "test" and not set(names) <= set(sizes):
            names = ("x", "y")
        missing = [name for name in names if name not in sizes]
        if missing:
            raise InputError(f"has no array {missing[0]} for the {split} split", file=path, key="dataset",
                             value=", ".join(sorted(sizes)) or "no arrays", remedy=_NPZ_HELP)
        if sizes[names[0]] > MAX_BYTES:
            raise InputError(f"array {names[0]} is larger than {MAX_BYTES >> 30} GiB", file=path, value=sizes[names[0]],
                             remedy="use fewer samples, or uint8 instead of float32")
        with np.load(path, allow_pickle=False) as arrays:
            x, y = (arrays[name] for name in names)
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, KeyError) as error:
        raise InputError(f"is not an .npz file of plain arrays ({str(error) or type(error).__name__})", file=path,
                         key="dataset", remedy=_NPZ_HELP) from None
    frames = _frames(x, path, names[0])
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) != len(frames) or (y.size and int(y.min()) < 0):
        raise InputError(f"array {names[1]} is not a class number per sample: {y.dtype.name} of shape {y.shape} for "
                         f"{len(frames)} samples", file=path, key=names[1], remedy=_NPZ_HELP)
    if not len(y):
        raise InputError("holds no samples", file=path, key=names[1], remedy=_NPZ_HELP)
    return Dataset(str(path), split, frames, y.astype(np.int64), int(y.max()) + 1)


def _frames(x: NDArray[Any], path: Path, key: str) -> NDArray[Any]:
    """Any accepted form of images as (N, C, H, W), uint8 or float32 in [0, 1]. Raises InputError."""
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in x.shape[1:]:
        raise InputError("is not an array of grey or colour images", file=path, key=key, value=str(x.shape), remedy=_NPZ_HELP)
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    if x.dtype.kind != "f":
        raise InputError("is neither uint8 nor floating point", file=path, key=key, value=x.dtype.name, remedy=_NPZ_HELP)
    if x.size and not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
        raise InputError("has values outside 0..1", file=path, key=key, value=f"{x.min()} to {x.max()}",
                         remedy="divide by the largest value, or store uint8")
    return np.ascontiguousarray(x, np.float32)


# ---- a folder of images ------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _folder(path: Path, split: Split, image_size: ImageSize | None, signature: str) -> Dataset:
    root = _split_folder(path, split)
    class_names = tuple(sorted(d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith(".")))
    files = [(file, label) for label, name in enumerate(class_names) for file in _images(root / name)]
    if not files:
        raise InputError(f"holds no images of the {split} split", file=root, key="dataset", remedy=_FOLDER_HELP)
    channels, size = 1, image_size
    for file, _ in files:
        mode, found = _header(file)
        channels = channels if mode in ("1", "L", "LA", "I;16") else 3
        if image_size is None and size is not None and found != size:
            raise InputError(f"is an image of {found[0]}x{found[1]} pixels; those before it are {size[0]}x{size[1]} "
                             "(height x width)", file=file, key="dataset",
                             remedy="write image_size: [height, width] in the scenario to resize all of them")
        size = image_size or found
    assert size is not None  # there is at least one file
    if len(files) * channels * size[0] * size[1] > MAX_BYTES:
        raise InputError(f"is larger than {MAX_BYTES >> 30} GiB in memory", file=path, key="dataset",
                         remedy="use fewer or smaller images")
    frames = np.stack([_pixels(file, channels, size) for file, _ in files])
    labels = np.array([label for _, label in files], np.int64)
    return Dataset(str(path), split, frames, labels, len(class_names), class_names)


def _split_folder(path: Path, split: Split) -> Path:
    """`path/<split>` where the folder has splits, else `path`, which then is the test split."""
    if any((path / name).is_dir() for name in SPLITS):
        if (path / split).is_dir():
            return path / split
        raise InputError(f"has no sub-folder {split}", file=path, key="dataset", remedy=_FOLDER_HELP)
    if split != "test":
        raise InputError(f"has no {split} split", file=path, key="dataset", remedy=_FOLDER_HELP)
    return path


def _images(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())


def _signature(path: Path) -> str:
    """Changes when a file of the folder changes: names, sizes and modification times."""
    text = "".join(f"{f}\0{(s := f.stat()).st_size}\0{s.st_mtime_ns}\n" for f in _images(path))
    return hashlib.sha256(text.encode()).hexdigest()


def _header(file: Path) -> tuple[str, ImageSize]:
    """Mode and (height, width) of an image, without decoding it. Raises InputError."""
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG", "JPEG"]) as image:
            return image.mode, (image.height, image.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _not_an_image(file, error) from None


def _pixels(file: Path, channels: int, size: ImageSize) -> NDArray[np.uint8]:
    """uint8 (C, H, W)."""
    from PIL import Image

    try:
        with Image.open(file, formats=["PNG", "JPEG"]) as image:
            plain = image.convert("L" if channels == 1 else "RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _not_an_image(file, error) from None
    if plain.size != (size[1], size[0]):
        plain = plain.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array = np.asarray(plain, np.uint8)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _not_an_image(file: Path, error: Exception) -> InputError:
    return InputError(f"is not a PNG or JPEG image ({error})", file=file, key="dataset",
                      remedy="remove the file, or write it anew")
