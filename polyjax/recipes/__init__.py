"""Settings, presets and what is done with them; ``polyjax`` itself is its face."""
