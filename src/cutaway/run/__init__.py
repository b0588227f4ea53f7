"""Record, replay, intervene. torch starts here."""
