"""Questions that take more than one run: variants of an experiment side by side, and ablations."""
