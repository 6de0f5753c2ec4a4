"""The image store: WebAssembly files by name and by digest."""
