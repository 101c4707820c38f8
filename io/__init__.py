"""Everything that crosses the process border: raw FITS, camera YAML, calibration and template stores, HDF5 products."""
