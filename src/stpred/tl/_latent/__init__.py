"""The hidden layer of a trained network: what it sees as alike."""
