"""Backtests: history replayed in process over columns, by the kernels' own rules."""
