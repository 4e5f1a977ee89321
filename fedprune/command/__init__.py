"""The words of a command, and the answers to those that ask for none of a run: help, the version, advice on a misspelt key."""
