"""Where a model comes from and what the gate said of it: signatures that are verified, signatures that are made."""
