"""Files of the user's and ours: where they are, how they are read, and how they get their final names."""
