"""Protection of topics and data: signatures of records, and tokens in place of identifiers."""
