#!/usr/bin/env bash
# Builds the release binaries: deploy/build.sh [DIRECTORY [GOARCH…]]
#
# The same commit and toolchain make the same bytes, wherever it is run. Beside
# each binary stands its SBOM (CycloneDX) when SBOM=yes.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-dist}
shift || true
version=${VERSION:-$(git describe --tags --always --dirty)}
commit=${COMMIT:-$(git rev-parse HEAD)}
date=${DATE:-$(TZ=UTC git show -s --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd)}
mkdir -p "$out"
(($#)) || set -- amd64 arm64
for arch in "$@"; do
  CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false \
    -ldflags "-s -w -buildid= -X main.version=$version -X main.commit=$commit -X main.date=$date" \
    -o "$out/shoal-linux-$arch" ./cmd/shoal
  if [[ ${SBOM:-} == yes ]]; then
    go tool -modfile=tools/release/go.mod cyclonedx-gomod bin -json -licenses -noserial \
      -version "$version" -output "$out/shoal-linux-$arch.cdx.json" "$out/shoal-linux-$arch"
  fi
done
