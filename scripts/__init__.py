"""What nox runs besides the tools of others."""
