"""What an HTML page needs to run a model: its weights, an engine in JavaScript, and the assembly of the page."""
