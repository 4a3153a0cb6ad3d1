"""Which files are images: formats, suffixes and first bytes, and what reads the others."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from PIL import Image

from ..errors import DataError
from ..files import open_regular
from .slices import DICOM_SUFFIXES, VOLUME_SUFFIXES

Image.init()  # all of Pillow's formats, not the usual five alone

NOT_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
"""Formats of Pillow that are never opened: it decodes no pixels of theirs, or starts another program (EPS: Ghostscript)."""

FORMATS = tuple(name for name in Image.OPEN if name not in NOT_PICTURES)
"""Pillow's formats that are read; HEIF comes in with pillow-heif once a file asks for it."""

AMBIGUOUS = frozenset({".bw", ".gbr", ".icb", ".im", ".msp", ".pcd", ".vda", ".vst"})
"""Names that files of other programs have more often than images do: bigWig, Gerber, point clouds, ..."""

HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})

HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
"""What the type of a HEIF file is called in its first bytes; AVIF, which Pillow reads, is mif1 seldom."""

HEIF_INSTALLED = importlib.util.find_spec("pillow_heif") is not None
DICOM_INSTALLED = importlib.util.find_spec("pydicom") is not None
JXL_INSTALLED = importlib.util.find_spec("imagecodecs") is not None
NIFTI_INSTALLED = importlib.util.find_spec("nibabel") is not None

SUFFIXES = frozenset(
    {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")} - AMBIGUOUS
    | (HEIF_SUFFIXES if HEIF_INSTALLED else set())
    | (DICOM_SUFFIXES if DICOM_INSTALLED else set())
    | (VOLUME_SUFFIXES if NIFTI_INSTALLED else set())
    | ({".jxl"} if JXL_INSTALLED else set())
)
"""Names of image files, in lower case: those of what Pillow reads, of JPEG XL, DICOM and NIfTI volumes, whose slices are
images."""

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
"""Names of files with an array (H, W) or (H, W, C); many lie beside images and are none, so they count as images where no file
of ``SUFFIXES`` is."""

HEIF_HINT = "pip install 'maelift[heif]'"

_READERS = (
    (".heic .heif .hif .heics .heifs", HEIF_HINT),
    (".avif .avifs", "pip install 'pillow>=11.3'"),
    (".jxl", "pip install 'maelift[tiff]'"),
    (".hdr .exr .jxr .wdp .bpg .ktx .psb", "convert to PNG or TIFF"),
    (".dng .cr2 .cr3 .nef .nrw .arw .orf .rw2 .raf .pef .srw .3fr .iiq", "raw photos: develop to JPEG or TIFF"),
    (".svg .svgz .eps .ps .ai .pdf .wmf .emf .djvu", "drawings and documents: render to PNG"),
    (".mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .wmv", "videos: extract frames, with ffmpeg for example"),
    (".dcm .dicom", "pip install 'maelift[dicom]'"),
    (".nii .nii.gz", "pip install 'maelift[nifti]'"),
    (".nrrd .mha .mhd .svs .ndpi .czi .lif .fits .fit", "convert to PNG, TIFF or .npy"),
    (".mat .h5 .hdf .hdf5 .pkl .pt .zarr", "save each image as PNG, TIFF or .npy"),
    (".npy .npz", "arrays are read where no image file lies beside them"),
    (".zip .7z .rar .gz .tgz .bz2 .xz", "unpack it"),
    (" ".join(sorted(AMBIGUOUS)), "if these are images, convert to PNG"),
)


def what_reads(suffix: str) -> str | None:
    """For the suffix (".heic") of files that aren't read as images: what would read them, in words; None for what is no image."""
    lower = suffix.lower()
    if lower in SUFFIXES:
        return None
    return next((hint for suffixes, hint in _READERS if lower in suffixes.split()), None)


HEAD = 512
"""Bytes by which a file is known that isn't read."""


def kinds() -> str:
    """The kinds of image files that are read, in words."""
    installed = (
        (HEIF_INSTALLED, ", heic"),
        (JXL_INSTALLED, ", jxl"),
        (DICOM_INSTALLED, ", dcm"),
        (NIFTI_INSTALLED, ", nii"),
    )
    more = "".join(word for there, word in installed if there)
    return f"jpg, png, webp, tif, bmp, gif, jp2, avif{more} and others of Pillow's"


_KNOWN_STARTS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "HDF5"),
    (b"SIMPLE  =", "FITS"),
    (b"version https://git-lfs", "a pointer of Git LFS (git lfs pull fetches the file)"),
)


def describe_unknown(path: Path, content: bytes | None) -> str:
    """What a file is that no decoder knows."""
    if content is None:
        with open_regular(path) as file:
            content = file.read(HEAD)
    if not content:
        return "an empty file"
    for start, what in _KNOWN_STARTS:
        if content.startswith(start):
            return f"{what}, not an image"
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return "not an array of numpy, whatever its name says"
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS:
        return "a HEIC image that can't be decoded: damaged, or cut off"
    if content[4:8] == b"ftyp":
        return f"a video, or an image of a kind that isn't read ({content[8:12].decode('latin-1')}), whatever its name says"
    head = content[:HEAD].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "text such as a web page (HTML), not an image, whatever its name says"
    if not any(content[:HEAD]):
        return "zeros, not an image"
    return "not an image, whatever its name says"


def heif_formats(head: bytes) -> list[str]:
    """Pillow's name of HEIF, registered, for a file that begins like one."""
    if head[4:8] != b"ftyp" or head[8:12] not in HEIF_BRANDS:
        return []
    if not HEIF_INSTALLED:
        raise DataError(f"a HEIC photo, which pillow-heif reads: {HEIF_HINT}")
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return ["HEIF"]
