"""What `hack/bench` measures: a real provider, driven over gRPC, beside the native `wasmtime` command."""
