"""Who takes part, as files: keys that stay where they are made, requests, rosters, and what a party has accepted."""
