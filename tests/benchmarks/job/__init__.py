"""Job (a) of the benchmarks: what every engine is asked to do, and how its answers are checked.

Read ``definition`` first. ``prepare`` makes the input and the models, ``reference`` computes the right answers slowly,
``check`` compares an engine's output topic with them.
"""
