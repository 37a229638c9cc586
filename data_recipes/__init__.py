"""Where subjects come from: files and generated patients, all as one `Subject`."""
