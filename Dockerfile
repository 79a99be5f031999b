# frs-pipeline in four images: `train` (the default), `tensorrt`, `device`, `jetson`. docs/docker.md says how to build and use
# them, and which were built and tried.
#
#   docker build --build-arg COMMIT=$(git describe --always --dirty --abbrev=40 --exclude='*') \
#       --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) -t frs .
#
# The digest is of the index for all architectures. NVIDIA's images are named by tag; a digest may be given in its place.
ARG BASE_IMAGE=docker.io/library/python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
ARG TENSORRT_IMAGE=nvcr.io/nvidia/tensorrt:26.08-py3
# JetPack 7: nvcr.io/nvidia/tensorrt:26.08-py3 and JETPACK=7.
ARG JETSON_IMAGE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
ARG VERSION=0.1.0

# The wheel; and pip without an environment, for bases that have none, with setuptools for what has no wheel.
FROM ${BASE_IMAGE} AS wheel
COPY locks/build.txt /locks/
RUN python3 -m venv /build \
    && /build/bin/python -m pip install --no-cache-dir --require-hashes --requirement /locks/build.txt \
    && cp -r /build/lib/python3*/site-packages /pip
COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY pipeline /src/pipeline
COPY stages /src/stages
COPY frs /src/frs
RUN /build/bin/python -m pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /wheel /src

FROM ${BASE_IMAGE} AS slim-packages
COPY --from=wheel /pip /pip
COPY containers/install /install

FROM slim-packages AS train-packages
ARG SOURCE_DATE_EPOCH=0
COPY locks/train.txt /lock.txt
RUN /install packages
COPY --from=wheel /wheel /wheel
RUN /install wheel

FROM slim-packages AS device-packages
ARG SOURCE_DATE_EPOCH=0
COPY locks/device.txt /lock.txt
RUN /install packages
COPY --from=wheel /wheel /wheel
RUN /install wheel

# With NVIDIA's images TensorRT is the system's, which the environment therefore sees.
FROM ${TENSORRT_IMAGE} AS tensorrt-packages
ARG SOURCE_DATE_EPOCH=0
COPY --from=wheel /pip /pip
COPY containers/install /install
COPY locks/tensorrt.txt /lock.txt
RUN /install packages --system-site-packages
COPY --from=wheel /wheel /wheel
RUN /install wheel

FROM ${JETSON_IMAGE} AS jetson-packages
ARG SOURCE_DATE_EPOCH=0
ARG JETPACK=6
COPY --from=wheel /pip /pip
COPY containers/install /install
COPY locks/jetson${JETPACK}.txt /lock.txt
RUN /install packages --system-site-packages
COPY --from=wheel /wheel /wheel
RUN /install wheel

# USER and HOME are said because a user that `docker run --user` names is in no list.
FROM ${TENSORRT_IMAGE} AS tensorrt
COPY --from=tensorrt-packages /opt/frs /opt/frs
ARG VERSION
ARG COMMIT
ENV PATH=/opt/frs/bin:$PATH FRS_LOCK=/opt/frs/lock.txt FRS_COMMIT=${COMMIT} USER=frs HOME=/tmp XDG_CACHE_HOME=/runs/.cache
LABEL org.opencontainers.image.title=frs-pipeline org.opencontainers.image.version=${VERSION} \
    org.opencontainers.image.revision=${COMMIT}
RUN mkdir -p /data /runs && chown 1000:1000 /runs
VOLUME /data /runs
WORKDIR /
USER 1000:1000
ENTRYPOINT ["frs-pipeline"]

FROM ${JETSON_IMAGE} AS jetson
COPY --from=jetson-packages /opt/frs /opt/frs
ARG VERSION
ARG COMMIT
ENV PATH=/opt/frs/bin:$PATH FRS_LOCK=/opt/frs/lock.txt FRS_COMMIT=${COMMIT} USER=frs HOME=/tmp XDG_CACHE_HOME=/runs/.cache
LABEL org.opencontainers.image.title=frs-pipeline org.opencontainers.image.version=${VERSION} \
    org.opencontainers.image.revision=${COMMIT}
RUN mkdir -p /data /runs && chown 1000:1000 /runs
VOLUME /data /runs
WORKDIR /
USER 1000:1000
ENTRYPOINT ["frs-pipeline"]

FROM ${BASE_IMAGE} AS slim
ARG VERSION
ARG COMMIT
ENV PATH=/opt/frs/bin:$PATH FRS_LOCK=/opt/frs/lock.txt FRS_COMMIT=${COMMIT} USER=frs HOME=/tmp XDG_CACHE_HOME=/runs/.cache
LABEL org.opencontainers.image.title=frs-pipeline org.opencontainers.image.version=${VERSION} \
    org.opencontainers.image.revision=${COMMIT}
RUN mkdir -p /data /runs && chown 1000:1000 /runs
VOLUME /data /runs
WORKDIR /
USER 1000:1000
ENTRYPOINT ["frs-pipeline"]

FROM slim AS device
COPY --from=device-packages /opt/frs /opt/frs

FROM slim AS train
COPY --from=train-packages /opt/frs /opt/frs
