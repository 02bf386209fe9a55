"""What keeps a run whole: files and their hashes, locks, signals, processes, logs."""
