# The workspace as a container: mounts at /workspace, runs the command there, and on its end saves
# everything before it stops. See "In a container" in README.md.

FROM debian:bookworm-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends \
        gcc libc6-dev libfuse3-dev pkg-config python3 python3-dev python3-venv ca-certificates \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY requirements/build.txt requirements/runtime.txt requirements/
RUN python3 -m venv /opt/s3ws \
 && /opt/s3ws/bin/pip install --no-cache-dir --no-build-isolation --require-hashes -r requirements/build.txt \
 && /opt/s3ws/bin/pip install --no-cache-dir --no-build-isolation --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY packaging/s3ws.1 packaging/
COPY packaging/completion packaging/completion
COPY s3ws_fs s3ws_fs
# The build tools are no part of what runs.
RUN /opt/s3ws/bin/pip install --no-cache-dir --no-build-isolation --no-deps --no-index . \
 && /opt/s3ws/bin/pip uninstall -y cython setuptools-scm vcs-versioning setuptools

FROM debian:bookworm-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates fuse3 git python3 sqlite3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --shell /bin/bash agent \
 && install -d -m 0700 /var/lib/s3ws \
 && install -d /workspace
COPY --from=build /opt/s3ws /opt/s3ws
COPY packaging/docker_entrypoint.py /opt/s3ws/bin/docker-entrypoint
ENV PATH=/opt/s3ws/bin:$PATH \
    WORKSPACE_CACHE_DIR=/var/lib/s3ws/cache \
    WORKSPACE_RUNTIME_DIR=/run/s3ws \
    WORKSPACE_MOUNTPOINT=/workspace \
    WORKSPACE_RUN_AS=10001:10001
# Unsaved changes outlive a container that was killed only where its cache does.
VOLUME /var/lib/s3ws
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/s3ws/bin/docker-entrypoint"]
CMD ["/bin/bash"]
