# An engine for NVIDIA GPUs: vLLM's own image and our plugin, nothing else changed. Built from the repository's root:
# docker build -f docker/engine-gpu.Dockerfile . (digests: docker/README.md)
ARG VLLM_IMAGE=docker.io/vllm/vllm-openai:v0.32.0

FROM ${VLLM_IMAGE} AS build
ARG SOURCE_DATE_EPOCH=0
WORKDIR /src
COPY requirements/gateway.lock requirements/
# setuptools of the lock, in this stage only.
RUN grep -E '^setuptools==' requirements/gateway.lock > build.lock \
    && uv pip install --system --no-cache --no-deps --require-hashes -r build.lock
COPY pyproject.toml README.md LICENSE ./
COPY kimi_serve kimi_serve
# A wheel is of one Python, so it is built by the Python that will run it.
RUN mkdir /dist && python3 -c "from setuptools.build_meta import build_wheel; build_wheel('/dist')"

FROM ${VLLM_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="kimi-serve engine (GPU)" \
      org.opencontainers.image.description="vLLM 0.32 with kimi_serve's Kimi-VL" \
      org.opencontainers.image.licenses="MIT AND Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /dist /dist
# --no-deps: numpy, Pillow and tiktoken are vLLM's, in the versions that vLLM was built with.
RUN uv pip install --system --no-cache --no-deps --no-index /dist/kimi_serve-*.whl \
    && ln -s "$(python3 -c 'from kimi_serve.launch.footprint import BUNDLED; print(BUNDLED)')" /opt/kimi-vl-nano \
    && install -d -o 10001 -g 10001 /cache \
    && kimi-serve --version
# torch asks for a user's name, which 10001 has not.
ENV HOME=/cache USER=kimi-serve XDG_CACHE_HOME=/cache PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30m --retries=3 \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["kimi-serve"]
CMD ["engine", "/opt/kimi-vl-nano", "--host", "0.0.0.0", "--port", "8000"]
