"""From files to training samples: which images there are, what they show, their labels, and what is wrong with them."""
