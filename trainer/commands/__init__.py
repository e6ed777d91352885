"""The command line: a file for each command, with its options, help and early checks."""
