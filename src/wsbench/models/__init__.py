"""Plain torch networks: no Lightning, no data, no choice of normalization (they are built with BN and converted)."""
