"""Low rank: a layer that channels cannot narrow becomes two, with as many directions as pay off.

In comes a coupling, out goes that of a network which computes the same.

- A layer y = W x is written as y = B (A x), where the columns of B are orthonormal: the directions
  in which y varies most on the samples, the first one most (`factors`). At full rank that is exact.
- What lies between both is an axis like any other. So its units are scored, planned, cut, verified,
  repaired and trained as channels are, and nothing else knows of low rank.
- At full rank both layers cost more than one. They count as the one that they came from until they
  are cheaper (`Coupling.pairs`); and whoever stays as wide is put together again before anything is
  written (`run.low_rank`).
"""
