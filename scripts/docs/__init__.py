"""Documentation site: drawings, generated references, and the build."""
