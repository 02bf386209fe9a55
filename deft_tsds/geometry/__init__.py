"""Where points lie: exact neighbours, densities, clusters; in blocks, on the cores of a host or on accelerators."""
