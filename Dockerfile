# Both images are arguments, so that the build also works where only a local
# registry or a local image is at hand:
#   buildah build --build-arg BUILD_IMAGE=localhost/go --build-arg BASE_IMAGE=scratch .
ARG BUILD_IMAGE=docker.io/library/golang:1.26
ARG BASE_IMAGE=gcr.io/distroless/static-debian12:nonroot

FROM --platform=$BUILDPLATFORM ${BUILD_IMAGE} AS build
ARG TARGETOS=linux
ARG TARGETARCH
ARG VERSION=
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -buildvcs=auto -ldflags "-s -w -X main.version=$VERSION" -o /out/shoal ./cmd/shoal && \
    mkdir /out/data

FROM ${BASE_IMAGE}
# The user of distroless' nonroot images. A volume comes with whatever mode it
# has; the data directory is one level below, and the daemon makes it its own.
# A hostPath that belongs to root wants the container run as user 0; it needs
# no capability.
COPY --from=build --chown=65532:65532 /out/data /var/lib/shoal
COPY --from=build /out/shoal /usr/bin/shoal
USER 65532:65532
VOLUME /var/lib/shoal
EXPOSE 4400 4403
ENTRYPOINT ["/usr/bin/shoal"]
CMD ["daemon", "--data-dir", "/var/lib/shoal/data"]
