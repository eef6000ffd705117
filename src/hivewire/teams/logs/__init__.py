"""A team that reads text logs and reports what is in them: `hivewire demo`."""
