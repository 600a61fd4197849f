# The workspace as a container: mounts at /workspace, runs the command there, and on its end saves
# everything before it stops. With --serve, the default, it is a sidecar: see docs/containers.md.

FROM debian:bookworm-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
        gcc libc6-dev libfuse3-dev pkg-config python3 python3-dev python3-venv ca-certificates \
 && rm -rf /var/lib/apt/lists/*
# Where pip finds packages, when not where it looks by itself: docker build --build-arg PIP_INDEX_URL=…
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python3 -m venv /opt/s3ws \
 && /opt/s3ws/bin/pip install --no-build-isolation --require-hashes -r requirements/build.txt \
 && /opt/s3ws/bin/pip install --no-build-isolation --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY packaging packaging
COPY s3ws_fs s3ws_fs
# What only builds is no part of what runs; of the services that boto3 describes, S3 is used, and
# those that give credentials.
RUN /opt/s3ws/bin/pip install --no-build-isolation --no-deps --no-index . \
 && /opt/s3ws/bin/pip uninstall -y cython setuptools-scm vcs-versioning setuptools pip \
 && find /opt/s3ws -name '*.so' -exec strip --strip-unneeded {} + \
 && cd /opt/s3ws/lib/python3.11/site-packages/botocore/data \
 && find . -mindepth 1 -maxdepth 1 -type d \
        ! -name s3 ! -name sts ! -name sso ! -name sso-oidc ! -name signin -exec rm -r {} + \
 && /opt/s3ws/bin/python -c 'import boto3; boto3.Session().client("s3", region_name="us-east-1")'

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates fuse3 git python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --shell /bin/bash agent \
 && install -d -m 0700 /var/lib/s3ws \
 && install -d -o agent -g agent /workspace
COPY --from=build /opt/s3ws /opt/s3ws
ENV PATH=/opt/s3ws/bin:$PATH \
    WORKSPACE_CACHE_DIR=/var/lib/s3ws/cache \
    WORKSPACE_RUNTIME_DIR=/run/s3ws \
    WORKSPACE_MOUNTPOINT=/workspace \
    WORKSPACE_RUN_AS=10001:10001
# Unsaved changes outlive a container that was killed only where its cache does.
VOLUME /var/lib/s3ws
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s --retries=3 \
    CMD ["/opt/s3ws/bin/s3ws-entrypoint", "--health"]
ENTRYPOINT ["/opt/s3ws/bin/s3ws-entrypoint"]
CMD ["--serve"]
