"""Studies: sweeps over settings and the evaluation protocol."""
