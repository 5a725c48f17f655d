"""Model cards, filled from what was measured, and the way to the Hub."""
