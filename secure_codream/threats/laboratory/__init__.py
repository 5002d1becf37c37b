"""What attacks are made with: cohort, defences that can be switched off, what an adversary computes, evidence."""
