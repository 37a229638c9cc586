"""The HDF5 store. It knows nothing of simulation."""
