# mae-ast with everything that `make venv` installs.
#
#   docker build --tag mae_ast .
#   docker build --tag mae_ast --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" --env HOME=/data --volume "$PWD:/data" \
#     mae_ast mae-ast pretrain manifests --out runs/patch
#
# The base needs Python 3.11 or 3.12, or apt packages of one (Debian 12, Ubuntu 24.04).
ARG BASE=python:3.12-slim

# --- what `make venv` needs; the development container ends here ---
FROM ${BASE} AS base

# A compiler for fairseq and torch.compile. Versions are those of the base.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential ca-certificates git \
    && if ! command -v python3 > /dev/null; then \
        apt-get install --yes --no-install-recommends python3-dev python3-venv; \
    fi \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --shell /bin/bash --uid 1001 mae \
    && install --directory --mode 0777 /var/cache/pip
ENV PIP_CACHE_DIR=/var/cache/pip

# --- the package and its environment ---
FROM base

# Readable by every user: Apptainer runs it as the one who started it.
WORKDIR /opt/mae-ast
RUN chown mae .
USER 1001
COPY --chown=1001 . .

# For pip: another index, such as PyTorch's of CPU packages, which are smaller.
ARG PIP_EXTRA_INDEX_URL
# Extras of pyproject.toml, separated by commas; default: all.
ARG EXTRAS
RUN --mount=type=cache,target=/var/cache/pip,mode=0777 make venv ${EXTRAS:+EXTRAS="$EXTRAS"}

ENV PATH=/opt/mae-ast/.venv/bin:$PATH
WORKDIR /data
CMD ["mae-ast", "--help"]
