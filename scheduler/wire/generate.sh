#!/usr/bin/env bash
# Generates wirepb from swarm.proto with the tools that tools/go.mod pins.
# With --check it changes nothing and fails when the committed code is not
# what the tools make of the file.
set -euo pipefail
cd "$(dirname "$0")"
tools=$(cd ../../tools && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/bin"
(cd "$tools" && go build -o "$work/bin/" \
  github.com/bufbuild/buf/cmd/buf \
  google.golang.org/protobuf/cmd/protoc-gen-go \
  google.golang.org/grpc/cmd/protoc-gen-go-grpc)
export PATH="$work/bin:$PATH"
buf lint
if [[ ${1-} != --check ]]; then
  buf generate
  exit
fi
buf generate -o "$work"
for f in "$work"/wirepb/*.pb.go wirepb/*.pb.go; do
  f=wirepb/${f##*/}
  cmp -s "$f" "$work/$f" || { echo "scheduler/wire/$f is not fresh: run scheduler/wire/generate.sh"; exit 1; }
done
