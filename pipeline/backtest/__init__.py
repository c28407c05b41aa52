"""Backtests: history replayed in process over columns, decided as the live kernels decide it."""

from pipeline.backtest.engine.online import Learning
from pipeline.backtest.input.acceptance import LABEL_FIELDS, TRANSACTION_FIELDS
from pipeline.backtest.input.order import Order, OutOfOrder
from pipeline.backtest.input.wire_tables import delayed_truth, frame_tables, label_tables
from pipeline.backtest.runner.replay import replay
from pipeline.engine.records.columns import Reject
from pipeline.engine.scores.decisions import Decisions
from pipeline.history.files import file_tables

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
