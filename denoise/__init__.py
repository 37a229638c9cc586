"""Denoisers trained on the dose ladders that petsim makes."""
