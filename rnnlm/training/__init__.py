"""The training that both back ends share: configuration, loop, files, reports, command line."""
