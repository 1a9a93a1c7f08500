"""Maps: planned, computed, described and written; one, some, or a list of thousands (`batch`)."""
