"""The command `hivewire`: each command is a module here, imported only when it is asked for."""
