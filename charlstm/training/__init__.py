"""Training with torch. The only folder that may import it."""
