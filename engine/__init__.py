"""One detector: camera values, image memory and the stages from raw pixels to forced photometry. No files, no Ray."""
