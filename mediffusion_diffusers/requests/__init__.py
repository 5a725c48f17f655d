"""What is asked of every image of a dataset, and how the answers about a batch of pictures become rows of a table."""
