"""Arms × label counts × seeds, compared fairly: from a suite to a report."""
