"""Runs WebAssembly as processes. Knows wasmtime, and nothing of Kubernetes or gRPC."""
