"""Everything that crosses the process border: raw FITS, camera YAML, stores, HDF5 products; alerts and the prompt database."""
