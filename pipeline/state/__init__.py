"""Where state is kept and saved: a store on disk, and snapshots on any address."""
