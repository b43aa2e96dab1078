"""A folder of images: its classes, its split, and what may be wrong with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trainyard_shared.datasets.image_folder import load_image_folder
from trainyard_shared.errors import DataError


def write(folder: Path, name: str, count: int, colour: int, size: tuple[int, int] = (20, 10)) -> None:
    (folder / name).mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", size, (colour, i, 0)).save(folder / name / f"{i:02d}.png")


def write_noise(path: Path) -> None:
    """A picture that cannot be packed into a few bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def test_every_fifth_image_of_a_class_is_for_testing(tmp_path: Path) -> None:
    write(tmp_path, "cat", 10, 200)
    write(tmp_path, "dog", 5, 50)
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    found = load_image_folder(tmp_path, 8)
    assert found.class_names == ("cat", "dog")
    assert found.train_images.shape == (12, 3, 8, 8)
    assert found.test_images.shape == (3, 3, 8, 8)
    assert found.test_labels.tolist() == [0, 0, 1]
    assert found.test_images[:, 1, 0, 0].tolist() == [4, 9, 4]
    assert (found.train_images[found.train_labels == 0][:, 0] == 200).all()
    assert "every 5th" in found.source


def test_a_test_set_of_its_own(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        write(tmp_path / part, "a", count, 10)
        write(tmp_path / part, "b", count, 20)
    found = load_image_folder(tmp_path, 4)
    assert (len(found.train_images), len(found.test_images)) == (6, 4)
    assert "its own test set" in found.source


def test_images_are_scaled_to_the_shorter_side_and_cut_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255  # the middle
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(5):
            Image.fromarray(wide).save(tmp_path / name / f"{i}.png")
    assert (load_image_folder(tmp_path, 10).train_images == 255).all()


def test_grey_and_transparent_images_become_colours(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i, mode in enumerate(("L", "RGBA", "P", "RGB", "L")):
            Image.new(mode, (5, 5)).save(tmp_path / name / f"{i}.png")
    assert load_image_folder(tmp_path, 4).train_images.shape == (8, 3, 4, 4)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda p: (p / "cat" / "03.png").write_bytes(b"no picture"), "cat/03.png: cannot be read as an image"),
        (lambda p: write_noise(p / "cat" / "03.png"), "cat/03.png: cannot be read as an image"),
        (lambda p: [f.unlink() for f in (p / "dog").iterdir()], "dog: no images"),
        (lambda p: (p / "dog").rename(p.parent / "elsewhere"), "1 subfolders; at least 2"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, break_it: Callable[[Path], object], words: str) -> None:
    folder = tmp_path / "images"
    write(folder, "cat", 6, 1)
    write(folder, "dog", 6, 2)
    break_it(folder)
    with pytest.raises(DataError, match=words.replace(".", r"\.")):
        load_image_folder(folder, 8)


def test_a_folder_that_is_not_there_and_classes_that_training_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        load_image_folder(tmp_path / "nowhere", 8)
    for part, names in (("train", "ab"), ("test", "ac")):
        for name in names:
            write(tmp_path / part, name, 2, 1)
    with pytest.raises(DataError, match="c: a class that"):
        load_image_folder(tmp_path, 8)
    few = tmp_path / "few"
    write(few, "a", 2, 1)
    write(few, "b", 2, 1)
    with pytest.raises(DataError, match="none is left for testing"):
        load_image_folder(few, 8)
