"""The encoder, its file, probes on its features, and conversion of other libraries' weights."""
