"""Plain nn.Modules, one file per family; input shape and classes come from the data set."""
