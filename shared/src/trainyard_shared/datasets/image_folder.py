"""A folder of images with one subfolder for each class, as `torchvision.datasets.ImageFolder` takes it.

Either `folder/train/cat/1.png` and `folder/test/cat/9.png`, with a test set of its own, or `folder/cat/1.png`: then
every fifth image of a class, by name, is for testing.
"""

import warnings
from pathlib import Path

import numpy as np

from trainyard_shared.datasets.cifar import ImageDataset
from trainyard_shared.errors import DataError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm"})
TEST_SHARE = 5  # one image of so many is for testing where there is no folder `test`


def load_image_folder(folder: Path, image_size: int) -> ImageDataset:
    """Return all images as arrays (N, 3, image_size, image_size): the shorter side scaled, the middle cut out.

    Raises:
        DataError: no classes, a class without images, classes of the test set that training does not have, or a file
            that is no image; the message names it.
    """
    if not folder.is_dir():
        raise DataError(f"error: {folder}: there is no such folder of images")
    has_test = (folder / "train").is_dir() and (folder / "test").is_dir()
    train = _files(folder / "train" if has_test else folder)
    names = tuple(train)
    if has_test:
        test = _files(folder / "test")
        unknown = sorted(set(test) - set(names))
        if unknown:
            raise DataError(f"error: {folder / 'test' / unknown[0]}: a class that {folder / 'train'} does not have")
        split = "its own test set"
    else:
        test = {name: files[TEST_SHARE - 1 :: TEST_SHARE] for name, files in train.items()}
        train = {name: [file for file in files if file not in test[name]] for name, files in train.items()}
        split = f"every {TEST_SHARE}th image of a class for testing"
        if not any(test.values()):
            raise DataError(f"error: {folder}: no class has {TEST_SHARE} images, so none is left for testing")
    train_images, train_labels = _read(train, names, image_size)
    test_images, test_labels = _read(test, names, image_size)
    return ImageDataset(
        name=folder.resolve().name,
        kind="real",
        source=f"images of {len(names)} classes, {split} ({folder})",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=names,
    )


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the images of each class, sorted by name; hidden files and folders do not count."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise DataError(
            f"error: {folder}: {len(classes)} subfolders; at least 2 are needed, one for each class of images"
        )
    found = {}
    for path in classes:
        found[path.name] = sorted(
            file for file in path.iterdir() if file.suffix.lower() in ENDINGS and not file.name.startswith(".")
        )
        if not found[path.name]:
            raise DataError(f"error: {path}: no images ({', '.join(sorted(ENDINGS))}) of this class")
    return found


def _read(files: dict[str, list[Path]], names: tuple[str, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    labelled = [(file, names.index(name)) for name in files for file in files[name]]
    images = np.empty((len(labelled), 3, size, size), np.uint8)
    for row, (file, _) in enumerate(labelled):
        images[row] = _read_image(file, size)
    return images, np.array([label for _, label in labelled], np.int64)


def _read_image(file: Path, size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"error: {file}: cannot be read as an image: {error}") from error
    fitted = ImageOps.fit(upright, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(fitted).transpose(2, 0, 1)
