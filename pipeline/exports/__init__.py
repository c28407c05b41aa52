"""Topics as partitioned Parquet: for notebooks, and for backtests without a cluster."""
