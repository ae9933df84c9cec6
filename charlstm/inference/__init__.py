"""A trained model at work: numpy and C only."""
