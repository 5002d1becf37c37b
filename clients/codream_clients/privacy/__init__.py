"""Record-level differential privacy on one client: its plan, its ledger, and the mechanisms that spend."""
