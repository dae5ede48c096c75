# syntax=docker/dockerfile:1

# Built on the Debian release that the final image is made of, so that the C library is the same.
FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
# What release/build loads the gateway with, to count what runs.
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 redis-server \
    && rustup component add llvm-tools
# The folders outlive the build, so a change in src/ does not compile the dependencies again. They are
# no part of the image, hence the copy.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    --mount=type=cache,target=/src/bench/target \
    release/build \
    && cp target/dist/roomcast /roomcast
# The image has no mkdir. Docker gives a new volume the owner of the folder that it is mounted on.
RUN mkdir /data

# The C library, CA certificates and nothing else: no shell, no package manager. A static musl binary
# would fit a smaller image yet, but musl's allocator is slow with many threads.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /roomcast /usr/local/bin/roomcast
# For ROOMCAST_DATA_DIR=/data, with a volume. Its owner is the image's user.
COPY --from=build --chown=65532:65532 /data /data
# A container's loopback can't be reached from outside. Off loopback, the gateway starts only when told
# who may use it.
ENV ROOMCAST_LISTEN=0.0.0.0:8080
EXPOSE 8080
# No shell, no curl: the binary asks itself, at ROOMCAST_LISTEN.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s CMD ["/usr/local/bin/roomcast", "health"]
ENTRYPOINT ["/usr/local/bin/roomcast"]
