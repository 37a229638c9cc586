"""Writers: changed values back into the kind of file they were read from."""
