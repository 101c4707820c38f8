"""What each command of ``nightstream`` does; `nightstream.cli` declares their arguments."""
