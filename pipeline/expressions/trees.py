"""Stub until the package is merged."""
from enum import IntEnum
from typing import Any
class Kind(IntEnum):
    TEXT = 0
    NUMBER = 1
Tree = Any
def check_tree(data, fields): return data
def fields_in(tree): return frozenset()
def text_of(tree): return str(tree)
