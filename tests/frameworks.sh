#!/usr/bin/env bash
# Installs the frameworks that the adapters are tested with into the environment of `make install`.
#
# mmsegmentation comes as its maintained continuation (onedl-*, whose modules keep the names mmseg, mmcv and mmengine).
# detectron2 is not on PyPI under its own name. sal-detectron2 is upstream of 2024-04-17, tagged for another Python, so its
# wheel is unpacked into a folder of its own, which is put on the path; its binary, which does not fit, is removed (rotated
# boxes and deformable convolutions need it, ViTDet doesn't). Users install detectron2 from its own repository:
# docs/detectron2.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
site=$PWD/.venv/detectron2

pip() { "$python" -m pip "$1" --disable-pip-version-check -q "${@:2}"; }

echo "maelift: installing the frameworks of the adapters' tests into .venv (about a minute)"
pip install -c constraints.txt -e '.[dev,heif,transformers,parquet,peft,slurm,ray,tiff,dicom,nifti,webdataset,onnx,mmseg,docs]'
pip install -c constraints.txt --no-deps fvcore iopath yacs portalocker termcolor tabulate cloudpickle shapely
pip install -c constraints.txt black hydra-core pycocotools setuptools
# onedl-mmcv brings an OpenCV that needs a graphics library of the system; the other one has the same modules without it.
pip uninstall -y opencv-python opencv-python-headless
pip install -c constraints.txt --no-deps opencv-python-headless

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
foreign=(--no-deps --only-binary=:all: --python-version 3.10 --implementation cp --abi none --platform any)
pip download "${foreign[@]}" --dest "$wheels" sal-detectron2==0.7.2
echo "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561  $(echo "$wheels"/*.whl)" | sha256sum --check --quiet
rm -rf "$site"
pip install "${foreign[@]}" --target "$site" "$wheels"/*.whl
mv "$site/tools" "$site/detectron2-tools" # training scripts; "tools" is too common a name for the path
rm -f "$site"/detectron2/_C.cpython-310*.so
echo "$site" > "$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/detectron2.pth"
"$python" -W ignore -c 'import detectron2.modeling, mmseg.models, onnx, onnxruntime, transformers'
