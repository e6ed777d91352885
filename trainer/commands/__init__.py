"""The command line: options, early refusals and exit codes of each command."""
