"""What the training script needs and a checkpoint does not: data, vocabulary, metrics, reports."""
