"""Raw data of scanners: events, sinograms, and the files that hold them."""
