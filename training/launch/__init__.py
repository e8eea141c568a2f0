"""How a stage is started: its command line, its process group, its watchdog, its progress."""
