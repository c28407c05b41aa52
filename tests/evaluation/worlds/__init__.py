"""Eight families of simulated worlds, unlike each other and unlike the Handbook's simulator.

A family is a distribution: rates, amounts, spans, hours and sizes are drawn for each seed. The first four families
choose features and settings. The other four judge: their detection is measured through ``--final`` alone, at most
twice, and each look is recorded in ``docs/quality.md``.
"""
