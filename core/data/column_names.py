"""Names that columns of tables of labels have: for paths, labels, splits, and flags of a split."""

from __future__ import annotations

PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img_path", "image", "img"),
    *(
        "image_file",
        "image_name",
        "img_name",
        "image_filename",
        "filepaths",
        "images",
        "image_id",
        "img_id",
        "id",
        "name",
    ),
)
"""Names of the column of image paths, in lower case, preferred ones first."""

LABEL_COLUMNS = (
    *("label", "labels", "class", "classes", "target", "targets", "category", "categories", "class_name", "classname"),
    *("label_name", "category_name", "class_label", "class_id", "label_id", "category_id", "tag", "tags", "species"),
)
"""Names of the column of labels, in lower case, preferred ones first."""

SPLIT_COLUMNS = ("split", "set", "subset", "partition", "dataset", "data set", "phase", "usage")
"""Names of the column of splits, in lower case."""

FLAG_COLUMNS = {"is_valid": "val", "is_val": "val", "is_test": "test"}
"""Boolean columns that mark the images of a split; the other images are of training."""
