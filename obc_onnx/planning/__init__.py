"""Which units stay.

In come saliency and a `Budget`, out goes a `PruningPlan`, which is a file. It must not know how
units were scored, nor how what is lost comes back.
"""
