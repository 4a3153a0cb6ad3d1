"""The encoder, the file that holds it, and weights of other tools read as one."""
