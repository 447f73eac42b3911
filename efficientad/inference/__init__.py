"""A trained detector, and what is made of its answers."""
