"""Backtests: history replayed in process over columns, decided as the live kernels decide it."""

from pipeline.backtest.accept import LABEL_FIELDS, TRANSACTION_FIELDS
from pipeline.backtest.learning import Learning
from pipeline.backtest.order import Order, OutOfOrder
from pipeline.backtest.run import replay
from pipeline.backtest.tables import delayed_truth, file_tables, frame_tables, label_tables
from pipeline.engine.columns import Reject
from pipeline.engine.decisions import Decisions

__all__ = [
    "LABEL_FIELDS",
    "TRANSACTION_FIELDS",
    "Decisions",
    "Learning",
    "Order",
    "OutOfOrder",
    "Reject",
    "delayed_truth",
    "file_tables",
    "frame_tables",
    "label_tables",
    "replay",
]
