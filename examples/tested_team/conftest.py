pytest_plugins = ["hivewire.testing.plugin"]
