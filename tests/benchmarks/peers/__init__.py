"""Job (a) in other engines, each written as its own documentation would have it, each its own process."""
