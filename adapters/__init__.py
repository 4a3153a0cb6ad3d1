"""The encoder in other frameworks: exports, imports, and the certificates that prove them equal."""
