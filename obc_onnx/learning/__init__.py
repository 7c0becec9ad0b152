"""What every kind of training shares: the distance that is learned.

In come values of two networks, out goes a loss. It must not know what trains: repair by gradient
and fine-tuning both do, and repair may not know of fine-tuning.
"""
