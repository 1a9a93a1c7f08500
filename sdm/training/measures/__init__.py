"""How good a model is: ranking, calibration, range edges."""
