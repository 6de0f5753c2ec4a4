"""The command line for people: talks to a wasmlet provider over its gRPC contract."""
