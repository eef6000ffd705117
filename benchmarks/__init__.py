"""Speed of Hivewire beside raw references, measured in one run: `make bench`."""
