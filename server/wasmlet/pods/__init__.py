"""The kubelet's brain: what becomes of a pod. Knows neither gRPC nor wasmtime."""
