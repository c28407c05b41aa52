"""Training of LightGBM versions: cohorts, fit, calibration, metrics and threshold, all from matrices."""
