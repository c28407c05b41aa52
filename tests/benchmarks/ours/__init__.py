"""This project's own entries among the engines: job (a) on its engine, and job (b), the pipeline as it ships."""
