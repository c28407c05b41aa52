"""The analysts' console: a queue of cases and a page for each, in a browser, without a database to run."""
