"""The console that the service shows at `/`: a page, its styles and its scripts, as they are sent."""
