"""The encoder inside other frameworks, one file a framework, each proven equal by its certificate."""
