"""The lab: question sets, rivals, needles, calibration measuring, benchmarks and replay. `cli/` has their commands."""
