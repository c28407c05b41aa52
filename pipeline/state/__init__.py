"""State on disk: a store, and snapshots at any address."""
