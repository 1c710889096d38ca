# The image, for linux/amd64 and linux/arm64:
#
#   docker buildx build --platform linux/amd64,linux/arm64 \
#     --build-arg VERSION=v1.2.3 --build-arg COMMIT=$(git rev-parse HEAD) \
#     --build-arg DATE=$(git show -s --format=%cI) \
#     --build-arg SOURCE_DATE_EPOCH=$(git show -s --format=%ct) --sbom=true .
#
# The same sources and arguments make the same binary, and with
# SOURCE_DATE_EPOCH (buildah: --timestamp) the same image. The two images below
# it are arguments, to be pinned by digest, and so that the build also works
# where only a local image is at hand:
#   buildah build --build-arg BUILD_IMAGE=localhost/go --build-arg BASE_IMAGE=scratch .
ARG BUILD_IMAGE=docker.io/library/golang:1.26
ARG BASE_IMAGE=gcr.io/distroless/static-debian12:nonroot

FROM --platform=$BUILDPLATFORM ${BUILD_IMAGE} AS build
ARG TARGETOS=linux
ARG TARGETARCH
ARG VERSION=
ARG COMMIT=
ARG DATE=
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH GOTOOLCHAIN=local \
    go build -trimpath -buildvcs=false \
      -ldflags "-s -w -buildid= -X main.version=$VERSION -X main.commit=$COMMIT -X main.date=$DATE" \
      -o /out/shoal ./cmd/shoal && \
    mkdir /out/data

FROM ${BASE_IMAGE}
ARG VERSION=
ARG COMMIT=
ARG DATE=
LABEL org.opencontainers.image.title=shoal \
      org.opencontainers.image.source=https://github.com/shoalproject/shoal \
      org.opencontainers.image.licenses=Apache-2.0 \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT \
      org.opencontainers.image.created=$DATE
# The user of distroless' nonroot images. A volume comes with whatever mode it
# has; the data directory is one level below, and the daemon makes it its own.
# A hostPath that belongs to root wants the container run as user 0; it needs
# no capability.
COPY --from=build --chown=65532:65532 /out/data /var/lib/shoal
COPY --from=build /out/shoal /usr/bin/shoal
USER 65532:65532
VOLUME /var/lib/shoal
EXPOSE 4400 4401 4402 4403 4404
ENTRYPOINT ["/usr/bin/shoal"]
CMD ["daemon", "--data-dir", "/var/lib/shoal/data"]
