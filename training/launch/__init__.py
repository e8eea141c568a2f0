"""How a stage is started: its command line, its process group, what watches over it."""
