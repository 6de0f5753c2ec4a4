"""The gRPC side: translates between the contract and the domain, and decides nothing."""
