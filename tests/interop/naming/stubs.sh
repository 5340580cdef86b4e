#!/usr/bin/env bash
# Generates the Go stubs of proto/echo.proto into echo/, with protoc and the generators that go.mod pins.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
package=tonic-etcd/interop/naming/echo
mkdir -p echo
protoc -I ../../../proto \
    --plugin="$(go tool -n protoc-gen-go)" \
    --plugin="$(go tool -n protoc-gen-go-grpc)" \
    --go_out=echo --go_opt=paths=source_relative,"Mecho.proto=$package" \
    --go-grpc_out=echo --go-grpc_opt=paths=source_relative,"Mecho.proto=$package" \
    echo.proto
