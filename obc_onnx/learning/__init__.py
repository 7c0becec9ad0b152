"""What every kind of training shares: the distance that is learned, and trials of learning rates.

In come tensors and numbers, out go losses and choices. It must not know what trains: repair by
gradient and fine-tuning both do, and neither may know the other.
"""
