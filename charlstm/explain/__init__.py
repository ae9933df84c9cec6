"""What a trained model does with a text, as data: numpy only."""
