"""Models: the encoders of places and species, their names and their calibration."""
