"""Collections of subjects."""
