# One image for a laptop, a GPU node or a cluster: `docker run --gpus all -v "$PWD":/searches optuna-nas run studies/digits.py`
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Versions of system packages follow the base image, which is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3 -m venv /opt/optuna-nas \
    && useradd --create-home --uid 10001 searcher \
    && mkdir /searches \
    && chown searcher /searches
ENV PATH=/opt/optuna-nas/bin:$PATH \
    PYTHONUNBUFFERED=1

COPY pyproject.toml README.md LICENSE /src/
COPY optuna_nas /src/optuna_nas
RUN pip install --no-cache-dir '/src[postgresql,s3]'

USER 10001
WORKDIR /searches
COPY --chown=searcher studies /searches/studies

ENTRYPOINT ["optuna-nas"]
CMD ["--help"]
