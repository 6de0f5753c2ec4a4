"""A Kubernetes node whose pods are WebAssembly: the virtual-kubelet provider."""
