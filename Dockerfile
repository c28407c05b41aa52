# The worker and all commands of `fraud-pipeline`, from the locked packages; without Java, so that `broker` and `run`
# need a cluster. docs/deployment.md tells how to name the base image by its digest.
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1
# The packages change less often than the code: a layer of their own.
COPY requirements.lock .
RUN pip install --no-cache-dir --require-hashes --requirement requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY pipeline pipeline
COPY agents agents
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
# Without them a worker compiles for minutes before it joins. For any processor: docs/deployment.md says what else.
ARG NUMBA_CPU_NAME=generic
RUN NUMBA_CACHE_DIR=/opt/venv/share/fraud-pipeline/kernels NUMBA_CPU_NAME=${NUMBA_CPU_NAME} fraud-pipeline compile

FROM ${PYTHON_IMAGE}
# LightGBM is linked against the system's OpenMP runtime.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home --home-dir /home/fraud --shell /usr/sbin/nologin fraud \
    && install --directory --owner=fraud --group=fraud /data /registry /snapshots
COPY --from=build /opt/venv /opt/venv
ARG NUMBA_CPU_NAME=generic
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/data/numba \
    NUMBA_CPU_NAME=${NUMBA_CPU_NAME} \
    FRAUD_PIPELINE_DATA_DIR=/data \
    FRAUD_PIPELINE_REGISTRY_DIR=/registry \
    FRAUD_PIPELINE_SNAPSHOT_URL=/snapshots \
    FRAUD_PIPELINE_METRICS_HOST=0.0.0.0 \
    FRAUD_PIPELINE_METRICS_PORT=9464
USER fraud
WORKDIR /data
VOLUME ["/data", "/registry", "/snapshots"]
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"FRAUD_PIPELINE_METRICS_PORT\"]}/livez', timeout=4).read()"]
# SIGTERM lets a worker finish or abort its batch and leave its group.
STOPSIGNAL SIGTERM
ENTRYPOINT ["fraud-pipeline"]
CMD ["worker"]
