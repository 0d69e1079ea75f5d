"""The plan to start with for a network and a number of calls, from a table of measurements."""
