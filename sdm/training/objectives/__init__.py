"""What is minimised: the range objective, the contrastive objective, and their losses."""
