"""Classification: a class, or several, for each image."""
