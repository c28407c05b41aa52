"""History as columns: files, exports and topics, put in order and checked as the decoder checks records."""
