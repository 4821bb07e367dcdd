# The gateway, without torch and vLLM. Built from the repository's root: docker build -f docker/gateway.Dockerfile .
# A tag can move: pass PYTHON_IMAGE with the digest that your registry shows (docker/README.md).
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG SOURCE_DATE_EPOCH=0
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements/gateway.lock requirements/
# One lock for both: setuptools makes the wheel, all the rest is what runs.
RUN python -m venv /opt/build \
    && python -m venv --without-pip /opt/kimi-serve \
    && grep -E '^setuptools==' requirements/gateway.lock > build.lock \
    && grep -vE '^setuptools==' requirements/gateway.lock > run.lock \
    && /opt/build/bin/pip install --no-deps --require-hashes -r build.lock \
    && /opt/build/bin/pip --python /opt/kimi-serve/bin/python install --no-deps --no-compile --require-hashes -r run.lock
COPY pyproject.toml README.md LICENSE ./
COPY kimi_serve kimi_serve
# Bytecode that names its source by hash: the root is read-only later, and two builds are alike.
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/kimi-serve/bin/python install --no-deps --no-compile --no-index /dist/kimi_serve-*.whl \
    && /opt/kimi-serve/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/kimi-serve/lib

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kimi-serve gateway" \
      org.opencontainers.image.description="An OpenAI-compatible gateway for Kimi-VL on vLLM" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/kimi-serve /opt/kimi-serve
RUN ln -s kimi-serve/lib/python3.11/site-packages/kimi_serve/assets/kimi-vl-nano /opt/kimi-vl-nano \
    && install -d -o 10001 -g 10001 /var/lib/kimi-serve
ENV PATH=/opt/kimi-serve/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/livez', timeout=2)"]
ENTRYPOINT ["kimi-serve"]
CMD ["gateway", "--host", "0.0.0.0", "--port", "8000", "--checkpoint", "/opt/kimi-vl-nano"]
