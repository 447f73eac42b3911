"""Speed, measured against a plain implementation of the method."""
