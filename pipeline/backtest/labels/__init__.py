"""Labels of a backtest: their schedule, the final ones, and the ground truth for metrics."""
