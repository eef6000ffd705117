"""Teams that come with the package."""
