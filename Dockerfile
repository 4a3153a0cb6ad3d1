# maelift in a container. No test builds it.
#
# docker build -t maelift .                                                  torch from PyPI, which runs on CPUs and on CUDA GPUs
# docker build -t maelift --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
#                                                                            for CPUs only: some GB less
# docker build -t maelift --build-arg EXTRAS=dicom,tiff .                    with extras of pyproject.toml
#
# docker run --rm --user "$(id -u)" -v "$PWD:/work" maelift pretrain data=photos out=runs/photos recipe=auto
# docker run --gpus all ...        on a GPU (NVIDIA's container toolkit); --shm-size=1g for benchmarks with several workers
FROM python:3.11-slim

ARG EXTRAS=
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# torch first: it is the largest layer and changes least
COPY constraints.txt /tmp/constraints.txt
RUN pip install -c /tmp/constraints.txt torch torchvision

COPY . /tmp/maelift
RUN pip install -c /tmp/constraints.txt "/tmp/maelift${EXTRAS:+[$EXTRAS]}" && rm -rf /tmp/maelift

# any user may run it: caches and settings of libraries go to a folder that all may write
ENV HOME=/tmp/home MPLCONFIGDIR=/tmp/home/matplotlib
RUN mkdir -m 1777 /tmp/home
WORKDIR /work
ENTRYPOINT ["maelift"]
CMD ["--help"]
