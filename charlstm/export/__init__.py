"""Models for other places: C for small devices. No torch."""
