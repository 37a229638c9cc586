"""Networks: torch modules that know nothing of PET."""
