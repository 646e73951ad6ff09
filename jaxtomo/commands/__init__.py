"""The commands, one a file. Each has its settings, a frozen dataclass, and `run(settings, console) -> Outcome`."""
