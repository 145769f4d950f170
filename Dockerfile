# docker build -t meinst_d2 .                                                      for the CPU
# docker build -t meinst_d2 --build-arg BASE=pytorch/pytorch:2.8.0-cuda12.8-cudnn9-devel .   for GPUs
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
RUN apt-get update && apt-get install --no-install-recommends -y git make g++ && rm -rf /var/lib/apt/lists/*
RUN python -c 'import torch' 2>/dev/null || pip install --no-cache-dir torch torchvision
RUN pip install --no-cache-dir 'setuptools<81' wheel
RUN pip install --no-cache-dir --no-build-isolation \
    'git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833'
WORKDIR /meinst_d2
COPY . .
RUN pip install --no-cache-dir --no-build-isolation -e '.[dev]'
CMD ["meinst", "--help"]
