"""Masks as other tools leave them: folders, names, colours, arrays; and why others can't be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.data.class_lists import read_class_list
from maelift.core.data.mask_files import read_mask
from maelift.core.data.segmentation import SegmentationImages
from maelift.core.data.segmentation_reader import parse_segmentation, read_segmentation
from maelift.core.errors import DataError
from maelift.core.tools.check_data import DataCheckConfig, data_check
from maelift.tests.support import noise_image
from numpy.typing import NDArray
from PIL import Image

SIZE = (12, 16)
Mask = NDArray[np.uint8]


def values(number: int) -> Mask:
    """A mask of the values 0, 1 and 2."""
    return np.random.default_rng(number).integers(0, 3, SIZE).astype(np.uint8)


def make(
    root: Path,
    save: Callable[[Path, int], object] | None = None,
    images: str = "images/{}.png",
    masks: str = "masks/{}.png",
    count: int = 6,
) -> Path:
    for number in range(count):
        for path in (root / images.format(number), root / masks.format(number)):
            path.parent.mkdir(parents=True, exist_ok=True)
        noise_image(number, SIZE).save(root / images.format(number))
        mask = root / masks.format(number)
        if save is None:
            Image.fromarray(values(number)).save(mask)
        else:
            save(mask, number)
    return root


def train(root: Path) -> SegmentationImages:
    return read_segmentation(root, val=1, test=1).train


def matches(data: SegmentationImages) -> bool:
    """Whether each mask is that of its image; both have the image's number in their names."""
    numbers = [int("".join(c for c in Path(name).stem if c.isdigit())[-1]) for name in data.images.paths]
    return all(np.array_equal(data.mask(place), values(number)) for place, number in enumerate(numbers))


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/{}.png", "labels/{}.png"),
        ("images/{}.png", "annotations/{}.png"),
        ("images/{}.png", "mask/{}.png"),
        ("Images/{}.png", "Masks/{}.png"),
        ("JPEGImages/{}.png", "SegmentationClass/{}.png"),
        ("img/{}.png", "gt/{}.png"),
        ("train/images/{}.png", "train/labels/{}.png"),
        ("images/training/{}.png", "labels/training/{}.png"),
        ("img_dir/train/{}.png", "ann_dir/train/{}.png"),
        ("train/{}.png", "train_labels/{}.png"),
        ("train/{}.png", "trainannot/{}.png"),
        ("images/a/{}.png", "masks/a/{}.png"),
        ("images/{}.png", "masks/{}_mask.png"),
        ("images/{}.png", "masks/{}-mask.png"),
        ("images/{}.png", "masks/{}_seg.png"),
        ("images/{}.png", "masks/{}_labelIds.png"),
        ("images/{}.png", "masks/{}_gt.tif"),
        ("images/{}.png", "masks/mask_{}.png"),
        ("images/{}.png", "masks/{}_my_own_word.png"),
        ("images/{}.png", "masks/roads-{}.png"),
        ("images/{}_sat.png", "masks/{}_mask.png"),
        ("images/{}_image.png", "masks/{}.png"),
        ("images/{}.ome.png", "masks/{}.png"),
        ("images/1{}.png", "labels/1{}_L.png"),
        ("images/x/{}.png", "labels/x/{}.mask.png"),
    ],
)
def test_masks_are_found_by_folders_and_names(tmp_path: Path, images: str, masks: str) -> None:
    data = train(make(tmp_path, None, images, masks))
    assert len(data) == 4
    assert matches(data)
    if not images.startswith("train/{}"):  # of which data check asks whether they are masks
        result = data_check(DataCheckConfig(str(tmp_path), near="off"))
        assert result.error is None and [split.task for split in result.splits] == ["segment"]


def test_a_name_with_more_is_not_another_images_mask(tmp_path: Path) -> None:
    make(tmp_path, count=3)
    for number in (10, 11, 12):  # the masks of images that aren't there
        Image.fromarray(values(0)).save(tmp_path / "masks" / f"{number}.png")
    parsed = parse_segmentation(tmp_path)["train"]
    assert [issue.kind for issue in parsed.issues] == ["mask without image"] * 3
    assert matches(parsed.data)


def test_two_masks_that_fit_an_image_equally_decide_nothing(tmp_path: Path) -> None:
    make(tmp_path, masks="masks/{}_mask.png")
    make(tmp_path, masks="masks/{}_seg.png")
    with pytest.raises(DataError, match=r"no .*masks/0\.png \(there is 0_(seg|mask)\.png\)"):
        train(tmp_path)
    for path in (tmp_path / "masks").glob("*_seg.png"):
        path.rename(path.with_name(path.name.replace("_seg", "")))
    for path in (tmp_path / "masks").glob("*_mask.png"):
        path.unlink()
    assert matches(train(tmp_path))


def test_a_second_mask_of_an_image_is_refused(tmp_path: Path) -> None:
    make(tmp_path, masks="masks/{}_mask.png")
    Image.fromarray(values(9)).save(tmp_path / "masks" / "3_mask_1.png")
    with pytest.raises(DataError, match=r"3_mask_1.png: another mask of the image 3, which already has 3_mask. Merge"):
        train(tmp_path)
    (tmp_path / "masks" / "3_mask_1.png").unlink()
    assert matches(train(tmp_path))


def test_masks_by_another_name_and_other_folders_are_named(tmp_path: Path) -> None:
    make(make(tmp_path, masks="masks/{}_mask.png"), masks="labels/{}.png")
    parsed = parse_segmentation(tmp_path)["train"]
    texts = [issue.text() for issue in parsed.issues]
    assert any("6 masks have other names than their images, such as 0_mask for 0" in text for text in texts)
    assert any("labels: masks are read from" in text for text in texts)
    result = data_check(DataCheckConfig(str(tmp_path)))
    assert result.error is None
    assert "read for segment as" in result.summary()


COLOURS = np.array([[0, 0, 0], [128, 0, 0], [60, 40, 222]], np.uint8)


def colour(path: Path, number: int) -> None:
    Image.fromarray(COLOURS[values(number)]).save(path)


LISTS = {
    "classes.txt": [
        "ground, #000000\nroad, #800000\ncar, #3C28DE\n",
        "ground 0 0 0\nroad 128 0 0\ncar 60 40 222\n",
        "0 0 0 ground\n128 0 0 road\n60 40 222\tcar\n",
        "ground, 0, 0, 0\nroad, 128, 0, 0\ncar, 60, 40, 222\n",
    ],
    "colors.csv": [
        "name,r,g,b\nground,0,0,0\nroad,128,0,0\ncar,60,40,222\n",
        "r;g;b;class\n0;0;0;ground\n128;0;0;road\n60;40;222;car\n",
        "class,color\nground,#000000\nroad,#800000\ncar,#3c28de\n",
    ],
    "class_dict.csv": ["name,r,g,b\nground,0,0,0\nroad,128,0,0\ncar,60,40,222\n"],
    "labelmap.txt": ["# label:color_rgb:parts:actions\nground:0,0,0::\nroad:128,0,0:lane,kerb:\ncar:60,40,222::go\n"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in LISTS.items() for text in texts])
def test_masks_in_colour_are_read_by_a_list_of_colours(tmp_path: Path, name: str, text: str) -> None:
    make(tmp_path, colour)
    (tmp_path / name).write_text(text)
    data = train(tmp_path)
    assert data.classes == ("ground", "road", "car")
    assert matches(data)
    assert matches(data.subset([1, 0]))


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_palettes_are_read_by_their_colours_where_these_are_listed(tmp_path: Path, order: list[int]) -> None:
    def save(path: Path, number: int) -> None:
        image = Image.fromarray(np.argsort(order).astype(np.uint8)[values(number)]).convert("P")
        image.putdata(np.argsort(order)[values(number)].ravel().tolist())
        image.putpalette(COLOURS[order].ravel().tolist())
        image.save(path)

    make(tmp_path, save)
    (tmp_path / "classes.txt").write_text(LISTS["classes.txt"][0])
    assert matches(train(tmp_path))


def test_a_colour_that_means_nothing_is_ignored_by_its_number(tmp_path: Path) -> None:
    make(tmp_path, colour)
    (tmp_path / "classes.txt").write_text(LISTS["classes.txt"][0])
    data = read_segmentation(tmp_path, val=1, test=1, ignore=0).train
    assert data.classes == ("road", "car")
    assert np.unique(data.mask(0)).tolist() == [0, 1, 255]


def rewrite(change: Callable[[Image.Image], Image.Image]) -> Callable[[Path, int], object]:
    return lambda path, number: change(Image.fromarray(values(number))).save(path)


WITH_ALPHA = [
    lambda image: image.convert("RGBA"),
    lambda image: image.convert("LA"),
    lambda image: image.convert("RGB"),
    lambda image: Image.fromarray(np.asarray(image).astype(np.uint16)),
    lambda image: Image.fromarray(np.asarray(image).astype(np.int32)),
]


@pytest.mark.parametrize("change", WITH_ALPHA)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_in_other_modes_is_what_pillow_reads(
    tmp_path: Path, change: Callable[[Image.Image], Image.Image], suffix: str
) -> None:
    if suffix == ".png" and change(Image.new("L", (1, 1))).mode == "I":
        return  # which PNG can't hold
    data = train(make(tmp_path, rewrite(change), masks="masks/{}" + suffix))
    assert matches(data)
    for mask in data.masks:
        with Image.open(mask) as image:
            expected = np.asarray(image)
        expected = expected if expected.ndim == 2 else expected[..., 0]
        assert np.array_equal(read_mask(mask), expected)


ARRAYS: dict[str, Callable[[Mask], Any]] = {
    "uint8": lambda mask: mask,
    "int64": lambda mask: mask.astype(np.int64),
    "big endian": lambda mask: mask.astype(">u2"),
    "Fortran": np.asfortranarray,
    "a channel": lambda mask: mask[..., None],
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_whole_numbers_are_read(tmp_path: Path, name: str) -> None:
    save = lambda path, number: np.save(path, ARRAYS[name](values(number)))  # noqa: E731
    assert matches(train(make(tmp_path, save, masks="masks/{}.npy")))


def transparent(path: Path, number: int) -> None:
    image = Image.fromarray(values(number)).convert("RGBA")
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(path)


def frames(path: Path, number: int) -> None:
    image = Image.fromarray(values(number))
    image.save(path, save_all=True, append_images=[image])


def noise(path: Path, number: int) -> None:
    noise_image(number, SIZE).save(path)


REASONS: dict[str, tuple[str, Callable[[Path, int], object], str]] = {
    "colour": ("png", colour, r"masks/0.png: a mask in colour \(RGB\): #[0-9a-f]{6}, .*classes.txt, a line 'NAME, #"),
    "a photo": ("png", noise, r"a mask in colour \(RGB\): .* and \d+ more"),
    "transparent": ("png", transparent, r"masks/0.png: a mask with transparent pixels \(RGBA\)"),
    "JPEG": ("jpg", rewrite(lambda image: image), r"masks/0.jpg: JPEG and WebP change the values"),
    "pages": ("tif", frames, r"masks/0.tif: 2 images in one file"),
    "float": ("tif", rewrite(lambda image: image.convert("F")), r"masks/0.tif: a mask of floating point numbers"),
    "CMYK": ("tif", lambda p, n: noise_image(n, SIZE).convert("CMYK").save(p), r"a mask in colour \(CMYK\)"),
    "deep": (
        "tif",
        rewrite(lambda i: Image.fromarray(np.asarray(i, np.int32) + 70_000)),
        r"values from 70000 to 70002",
    ),
    "float array": ("npy", lambda p, n: np.save(p, values(n) / 2), r"masks/0.npy: an array .* type float64. Expected"),
    "one-hot array": ("npy", lambda p, n: np.save(p, np.eye(3, dtype=int)[values(n)]), r"shape \(12, 16, 3\)"),
    "objects": (
        "npy",
        lambda p, n: np.save(p, np.array([{}]), allow_pickle=True),
        r"masks/0.npy: not a readable array",
    ),
    "negative": ("npy", lambda p, n: np.save(p, values(n).astype(int) - 1), r"values from -1 to 1"),
    "text": ("png", lambda p, n: p.write_text("<html>"), r"masks/0.png: not an image"),
    "empty": ("png", lambda p, n: p.write_bytes(b""), r"masks/0.png: an empty file"),
}


@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize("listed", [False, True])
def test_the_true_reason_comes_out_and_following_it_works(tmp_path: Path, name: str, listed: bool) -> None:
    suffix, save, text = REASONS[name]
    make(tmp_path, save, masks="masks/{}." + suffix)
    if listed:
        (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match=text) as refused:
        train(tmp_path)
    assert "\n" not in str(refused.value)
    result = data_check(DataCheckConfig(str(tmp_path), task="segment"))
    assert result.error is not None and "6 × broken mask" in result.error
    if name == "colour":
        lines = [f"{cls}, #{r:02x}{g:02x}{b:02x}\n" for cls, (r, g, b) in zip("abc", COLOURS.tolist(), strict=True)]
        (tmp_path / "classes.txt").write_text("".join(lines))
    else:  # a gray PNG, from the source
        for path in (tmp_path / "masks").iterdir():
            path.unlink()
        make(tmp_path)
    assert matches(train(tmp_path))


def test_a_named_pipe_among_the_masks_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(make(tmp_path) / "pipe.png")
    with pytest.raises(DataError, match="a named pipe"):
        read_mask(tmp_path / "pipe.png")


def test_colours_that_are_not_listed_are_named(tmp_path: Path) -> None:
    make(tmp_path, colour)
    (tmp_path / "classes.txt").write_text("ground, #000000\nroad, #800000\n")
    with pytest.raises(
        DataError, match=r"0.png: colour #3c28de, \d\d % of its pixels: not in the list of classes. Add 'NAME, #3c28de'"
    ):
        train(tmp_path)
    (tmp_path / "classes.txt").write_text("ground, #000000\nroad, #800000\nNAME, #3c28de\n")
    assert matches(train(tmp_path))


@pytest.mark.parametrize(("high", "names"), [(255, "background\nroad\n"), (255, "road\n\nsky\n")])
def test_masks_of_0_and_255_with_two_names_are_refused_with_the_line_to_write(
    tmp_path: Path, high: int, names: str
) -> None:
    def save(path: Path, number: int) -> None:
        mask = np.zeros(SIZE, np.uint8)
        mask[:6, :8] = high
        Image.fromarray(mask).save(path)

    make(tmp_path, save)
    (tmp_path / "classes.txt").write_text(names)
    second = names.split()[1]
    advice = f"Write '{second}, 255'"
    with pytest.raises(DataError) as refused:
        train(tmp_path)
    text = f"{second} (value 1) is in no mask, and 25 % of all pixels have 255, which is ignored. Masks of 0 and 255? {advice}"
    assert text in str(refused.value)
    (tmp_path / "classes.txt").write_text(names.replace(second, f"{second}, 255"))
    assert np.unique(train(tmp_path).mask(0)).tolist() == [0, 1]


def test_a_listed_class_in_no_mask_is_named_where_pixels_are_ignored(tmp_path: Path) -> None:
    def save(path: Path, number: int) -> None:
        mask = values(number)
        mask[:3] = 255
        Image.fromarray(mask).save(path)

    make(tmp_path, save)
    (tmp_path / "classes.txt").write_text("a\nb\nc\nbus\n")
    found = {finding.kind: finding for finding in data_check(DataCheckConfig(str(tmp_path))).findings}
    assert "bus (value 3) is in no mask, and 25 % of all pixels have 255" in found["listed class in no mask"].texts[0]
    assert found["listed class in no mask"].rule
    assert len(train(tmp_path)) == 4


def test_the_advice_for_unknown_values_works(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(
        DataError, match=r"value 2: not in classes.txt, nor ignored. Write 'NAME, 2' .* ignore=\[2,255\]"
    ):
        train(tmp_path)
    assert len(read_segmentation(tmp_path, val=1, test=1, ignore=[2, 255]).train) == 4
    (tmp_path / "classes.txt").write_text("a\nb\nNAME, 2\n")
    assert matches(train(tmp_path))


def test_a_mask_of_the_image_as_stored_is_refused_with_that_reason_and_one_with_its_own_orientation_is_read(
    tmp_path: Path,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    make(tmp_path)
    for number in range(6):
        noise_image(number, SIZE).save(tmp_path / "images" / f"{number}.png", exif=exif)
    with pytest.raises(DataError, match=r"before rotation by EXIF\? Rotate the mask too"):
        train(tmp_path)
    for number in range(6):
        Image.fromarray(values(number)).save(tmp_path / "masks" / f"{number}.png", exif=exif)
    data = train(tmp_path)
    numbers = [int(Path(name).stem) for name in data.images.paths]
    assert all(np.array_equal(data.mask(i), np.rot90(values(n), -1)) for i, n in enumerate(numbers))


@pytest.mark.parametrize(
    "text",
    [
        "a;0\nb;1\nc;2\n",
        "a\t0\nb\t1\nc\t2\n",
        "a: 0\nb: 1\nc: 2\n",
        "0 a\n1 b\n2 c\n",
        "0, a\n1, b\n2, c\n",
        "2: c\n0: a\n1: b\n",
        "# classes\na\n\nb\nc\n",
        "\ufeffa\nb\nc",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_of_classes_are_read_as_people_write_them(tmp_path: Path, text: str, encoding: str) -> None:
    (tmp_path / "classes.txt").write_bytes(text.removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding))
    listed = read_class_list(tmp_path)
    assert listed is not None and listed.names == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "K\xe4se\nb\n".encode("latin-1"), "not text in UTF-8 .byte 1.. Save it as UTF-8"),
        ("classes.txt", b"a, #000000\nb\n", "'b' has no colour"),
        ("classes.txt", b"a, #000000\nb, #000000\n", "a and b both have the colour #000000"),
        ("classes.txt", b"a 0 0 0\nb 0 0 999\n", "b has a colour of values above 255"),
        ("colors.csv", b"name,r,g\na,1,2\n", "expected the columns name, r, g, b"),
        ("colors.csv", b"name,r,g,b\na,1,2,3\nb,x,2,1\n", r"row 2 \(b, x, 2, 1\) has no colour"),
        ("classes.json", b"[" * 100_000, "not valid JSON"),
        ("classes.txt", b"a, 99999999999999999999\nb\n", "a has the value 999999999"),
    ],
)
def test_lists_that_cant_be_read_say_why(tmp_path: Path, name: str, text: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=expected) as refused:
        read_class_list(tmp_path)
    assert "\n" not in str(refused.value)


def test_of_pascal_voc_the_images_that_its_lists_name_are_read(tmp_path: Path) -> None:
    make(tmp_path, images="JPEGImages/{}.png", masks="SegmentationClass/{}.png")
    for number in range(6, 20):  # images of VOC's that have boxes only
        noise_image(number, SIZE).save(tmp_path / "JPEGImages" / f"{number}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name, text in (("train", "0\n3\n5\n"), ("val", "1\n2\n"), ("trainval", "0\n1\n2\n3\n5\n")):
        (lists / f"{name}.txt").write_text(text)
    found = parse_segmentation(tmp_path)
    assert {split: list(part.data.images.paths) for split, part in found.items()} == {
        "train": ["0.png", "3.png", "5.png"],
        "val": ["1.png", "2.png"],
    }
    assert not any(part.issues for part in found.values())
    assert matches(read_segmentation(tmp_path, test=1).val)
    (lists / "val.txt").write_text("1\n99\n")
    with pytest.raises(DataError, match=r"no image 99, which ImageSets/ lists"):
        read_segmentation(tmp_path, test=1)
